"""The pages that mypt writes: their templates, styles and scripts."""
