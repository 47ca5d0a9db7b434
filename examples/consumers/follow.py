#!/usr/bin/env python3
"""Follows a dataset from Python, with nothing but its standard library.

    CADASTRE_URL=http://localhost:7400 CADASTRE_TOKEN=… \\
        python3 follow.py shop.public.orders position.txt

The first run begins with the rows as they are, a later one after the position in the file. Whatever
is cut (this program, the network, the server), it goes on where it was.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# The feed breaks every silence after ten seconds: a connection that is silent for longer is dead.
SILENCE = 30
PAUSE = 1


def handle(event):
    """What is to be done with an event. It may come again after a crash: recognise it by its position."""
    print(json.dumps(event), flush=True)


def events(dataset, after):
    """The events after a position, until the connection ends."""
    query = urllib.parse.urlencode({"datasets": dataset, "after": after})
    request = urllib.request.Request(
        f"{os.environ['CADASTRE_URL']}/v1/feed?{query}",
        headers={
            "Accept": "application/x-ndjson",
            "Authorization": f"Bearer {os.environ['CADASTRE_TOKEN']}",
        },
    )
    with urllib.request.urlopen(request, timeout=SILENCE) as feed:
        for line in feed:
            if not line.endswith(b"\n"):
                return  # Cut in the middle of a line: it comes again.
            if line.strip():
                yield json.loads(line)


def keep(path, position):
    """Stores a position so that a crash leaves the old one or the new one."""
    with open(path + ".new", "w") as file:
        file.write(position)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def main(dataset, path):
    position = open(path).read() if os.path.exists(path) else "snapshot"
    while True:
        try:
            for event in events(dataset, position):
                if "error" in event:
                    if event["error"]["status"] == 410:
                        position = "snapshot"
                    break
                handle(event)
                position = event["position"]
                keep(path, position)
        except urllib.error.HTTPError as refused:
            if refused.code == 410:  # The log does not go back that far any more.
                position = "snapshot"
            elif refused.code < 500 and refused.code != 429:
                sys.exit(f"{refused}: {refused.read().decode()}")
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(PAUSE)


main(*sys.argv[1:])
