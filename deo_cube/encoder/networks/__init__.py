"""Networks that a card can describe, and adapters that make other models look like one."""
