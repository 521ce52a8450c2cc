"""The former pages and charts, until nothing imports them any more; :mod:`testtime.report` has taken their place."""
