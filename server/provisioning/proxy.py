"""nginx's configuration: the one door to a superlink whose other doors have no lock.

Flower's control and runtime paths ask nobody who he is: whoever reaches them runs code at every
institution. So the superlink listens on loopback, and this passes on what a node needs, by name:
a path that a later Flower adds is closed until somebody opens it here. Nodes are registered by the
coordinator alone.
"""

import getpass
import os

from protocol.hosts import endpoint
from server.provisioning.settings import FederationSettings

FLEET = (
    *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages"),
    *("push-messages", "get-run", "get-fab", "push-object", "pull-object"),
    "confirm-message-received",
)
"""What a node asks of the superlink (Flower 1.41, flwr/superlink/routers/fleet/router.py)."""


def nginx_configuration(settings: FederationSettings) -> str:
    """The text of nginx.conf for ``nginx -p HOME/ -c HOME/nginx.conf``.

    Every path in it is relative to HOME, so that the folder can be moved; all that nginx writes
    is below HOME/state, so that it needs no privileges. Objects travel in pieces of 5 MB.
    """
    # Started by root, nginx would give up its rights and not reach a folder that is root's alone.
    user = f"user {getpass.getuser()};\n" if os.geteuid() == 0 else ""
    return f"""\
# Written by blindsight from federation.toml; changes are lost when it is written again.
{user}worker_processes 1;
pid state/nginx/nginx.pid;
error_log state/nginx/error.log warn;
events {{ worker_connections 1024; }}

http {{
    access_log state/nginx/access.log;
    client_body_temp_path state/nginx/body;
    proxy_temp_path state/nginx/proxy;
    fastcgi_temp_path state/nginx/fastcgi;
    uwsgi_temp_path state/nginx/uwsgi;
    scgi_temp_path state/nginx/scgi;
    server_tokens off;
    default_type application/octet-stream;

    upstream superlink {{
        server 127.0.0.1:{settings.superlink_port};
        keepalive 16;
    }}

    server {{
        listen {endpoint(settings.listen, settings.port)} ssl;
        ssl_certificate identity/certificate.pem;
        ssl_certificate_key identity/private-key.pem;
        ssl_protocols TLSv1.3;
        ssl_session_tickets off;
        client_max_body_size 64m;

        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_trusted_certificate identity/authority.pem;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_read_timeout 300s;

        location ~ ^/v1/fleet/({"|".join(FLEET)})\\z {{ proxy_pass https://superlink; }}
        location = /health {{ proxy_pass https://superlink; }}
        location / {{ return 404; }}
    }}
}}
"""
