"""Messages to tokens and back: templates, samplers, grammars, streams of text."""
