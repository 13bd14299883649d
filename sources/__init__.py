"""Where events come from: a source watches something outside and emits CloudEvents to its sink."""
