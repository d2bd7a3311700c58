def reword(prompt, instruction):
    raise NotImplementedError
