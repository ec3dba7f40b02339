"""Our conversations as transformers' people write them."""


def hf_messages(row):
    """Return a conversation as ``apply_chat_template`` takes it, with nothing lost."""
    return [_message(message) for message in row.messages]


def _message(message):
    fields = {"role": message.role}
    kinds = [part.kind for part in message.parts]
    if kinds == ["text"] and message.parts[0].train is None:
        fields["content"] = message.text
    else:
        fields["content"] = [
            {"type": part.kind, "text": part.text, "train": part.train} for part in message.parts
        ]
    if message.train is not None:
        fields["train"] = message.train
    return fields
