"""
The batch itself, without Airflow. Read ``flow`` first; one module per arrow:

``rows`` → ``requests`` → ``shards`` → commit ``plan`` → ``submitting`` (upload, claim, create, record in the ``ledger``) →
``waiting`` → ``collecting`` (download, ``results``) → ``landing`` → ``manifest``.

``planning`` finds or makes the plan and gathers what is sent again; ``client`` is the one door to google-genai, ``rest`` and
``http`` our own words with the service; ``storage``, ``layout`` and ``documents`` say how and where things are kept.
"""
