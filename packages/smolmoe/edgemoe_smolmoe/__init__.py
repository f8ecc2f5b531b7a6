"""The folder of the built-in model, smolmoe-135m.gguf. edgemoe.places finds it; nothing here is to be imported."""
