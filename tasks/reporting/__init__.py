"""What a stage tells the terminal, MLflow and Prefect."""
