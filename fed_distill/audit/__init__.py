"""Privacy audits: attacks on trained students, and lower bounds on epsilon."""
