def open_picture(data, name):
    raise NotImplementedError
def restore(data):
    raise NotImplementedError
