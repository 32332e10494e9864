"""
Databases at both ends, through Airflow's hooks: ``query`` gives the rows of a SELECT, ``table`` takes results in.

``connecting`` turns a connection id into a hook and sorts a database's errors; ``databases`` holds what differs between
databases, ``values`` how each kind of value is stored, ``copying`` how rows travel to PostgreSQL. Knows Airflow;
knows nothing of Gemini.
"""
