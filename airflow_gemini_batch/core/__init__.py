"""
The batch itself, without Airflow. Read ``flow`` first; ``attempt`` is what all of it works on. One module per arrow:

``rows`` (``parquet``, ``source_columns``, ``exact``) → ``requests`` (``prompts``, ``per_row``, ``config``; ``readymade``,
``request_types``, ``spelling``) → ``shards`` → commit ``plan`` → ``media`` (``media_uploads``) → ``submitting`` (upload,
claim, create, record in the ``ledger``) → ``waiting`` → ``collecting`` (``fetching``, ``downloading``) → ``answers`` (a line
finds its row) → ``reading`` (a line becomes a ``results.Result``) → ``table``, ``landing``, ``media_files`` → ``finishing``
(``failures_file``, ``removing``) → ``manifest``.

``blocks`` (requests) and ``stretches``, ``plain_lines``, ``pairing`` (answers) do the plain cases by the column, ``ahead``
in threads; all else goes row by row. ``columns`` and ``kinds`` know the kinds of columns (``fitting``: those that the
settings fix), ``results`` the statuses and codes, ``jobs`` the states of jobs. ``schema`` is what answers must hold:
``schema_translation`` to the API's words, ``schema_types`` to a column's.

``planning`` finds or makes the plan, ``rounds`` gathers what is sent again; ``checks`` says what a setting may be,
``limits`` how large things may get. ``gates``, ``room`` and ``patience`` say what must wait: for a canary, a budget, limits,
a quota (``quotas`` reads which). ``usage``, ``prices``, ``estimate``, ``media_tokens``, ``measuring``, ``reckoning`` and
``budget`` count tokens and money, ``storage_quota`` what a project stores.

``watcher``, ``watches`` and ``survey`` look at many jobs at a time. ``client`` is the one door to google-genai, ``rest`` and
``http`` our own words with the service, ``remote_files`` and ``media_types`` what it says of files and what files are told
to be; ``storage``, ``layout``, ``names`` and ``documents`` say how and where things are kept, ``wording`` how numbers are
told.

``steps`` has the steps one by one, ``adopting`` lands any finished job, ``ends`` sees to jobs apart from a run.
"""

import os

# Arrow's allocator then takes memory as it is used, not a stretch at a time: 25 to 60 MB less at the peak and no slower.
# It is read when Arrow is imported; who imports Arrow earlier, or has set it, keeps what they have.
os.environ.setdefault("MIMALLOC_ARENA_EAGER_COMMIT", "0")
