"""What is wrong with a set of pictures and captions, and what is in it.

Every example is opened once, by several processes (``looking``). What comes back is a few hundred bytes of facts
(``facts``, ``fingerprint``), never a picture. Each check (``checks``, ``shapes``, ``copies``) sees the facts as they
come, and keeps numbers only. What they find is a ``Report``, which is printed (``telling``), written as JSON or as a
list of what to leave out (``lists``), and shown as a page with plots and small pictures (``page``).
"""
