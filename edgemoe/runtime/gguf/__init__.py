"""GGUF files: headers, shells, what contexts of them allocate."""
