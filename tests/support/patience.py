"""How long a test waits for what must come: only something that hangs takes so long, also on a machine that has much else to do."""

PATIENCE = 1800.0  # seconds
