"""Serves a bucket emulator in memory: `python serve.py gcs|s3`, run by emulators.py in the emulators' environment.

Prints the port it listens on, and ends when the process that started it does.
"""

import functools
import http.server
import logging
import os
import sys
import threading
import time


def make_gcs() -> http.server.HTTPServer:
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    # One thread, as the emulator's own: its storage has no locks. With a backlog of 5 clients would wait for a second.
    http.server.HTTPServer.request_queue_size = 128
    storage = Storage(use_memory_fs=True)
    # All it knows is written as JSON at each change, for a disk that there is none of.
    storage._write_config_to_file = lambda: None
    # What is deleted would be kept for a week.
    storage._bucket_soft_delete_retention_seconds = lambda bucket: 0
    return http.server.HTTPServer(("127.0.0.1", 0), functools.partial(RequestHandler, storage))


def make_s3() -> http.server.HTTPServer:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    return make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)


def end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


if __name__ == "__main__":
    logging.disable()
    threading.Thread(target=end_with, args=[int(sys.argv[2])], daemon=True).start()
    server = {"gcs": make_gcs, "s3": make_s3}[sys.argv[1]]()
    print(server.server_address[1], flush=True)
    server.serve_forever()
