"""Activities: the side effects of workflows, each one transaction or one poll of the chain."""
