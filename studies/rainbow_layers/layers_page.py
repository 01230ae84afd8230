def page(records): return ""
def figure(records):
    from rainbow_fast.plots.axes import blank_figure
    return blank_figure(1,1)
