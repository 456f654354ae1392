def render(data):
    return "<!doctype html>"
