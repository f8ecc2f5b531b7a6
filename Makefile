# The same commands as ./dev, for hands that type make. The options of chat go into ARGS:
#   make chat
#   make chat MODEL=model.gguf ARGS='--memory 6GiB'
.PHONY: setup test sanitize lint format clean chat

setup test sanitize lint format clean:
	@./dev $@ $(ARGS)

chat:
	@./dev chat $(MODEL) $(ARGS)
