"""The demos: `lrpjax demo` and `lrpjax demo --bow`."""
