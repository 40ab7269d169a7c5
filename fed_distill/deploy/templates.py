"""Templates of a deployment's text files: start scripts, configuration and instructions.

They are ``string.Template``: ``$NAME`` is replaced, and ``$$`` is a literal ``$``.
"""

import platform
from importlib.metadata import version
from string import Template


def releases() -> dict[str, str]:
    """Return the releases of Python, Flower and fed-distill, for the templates."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "flwr": version("flwr"),
        "release": version("fed-distill"),
    }


SERVER_START = Template("""\
#!/bin/sh
# Starts the server (Flower's SuperLink), with TLS and with none but registered sites. LISTEN: which of this machine's
# addresses it answers on. Whoever reaches it there can let sites in and start runs: leave it at 127.0.0.1, and publish
# the server with proxy.sh. flower-superlink must be on the PATH: activate the environment first.
set -eu
umask 077
cd "$$(dirname "$$0")"
export FLWR_HOME="$$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 XDG_CACHE_HOME="$$PWD/cache" PYTHONSAFEPATH=1
exec flower-superlink \\
    --host "$${LISTEN:-127.0.0.1}" --port $inner \\
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation \\
    --database state.db
""")

PROXY_START = Template("""\
#!/bin/sh
# Starts nginx as nginx.conf says: it publishes $address. Needs nginx on the PATH, and the server's user.
set -eu
umask 077
cd "$$(dirname "$$0")"
mkdir -p proxy
PATH=$$PATH:/usr/sbin exec nginx -e stderr -p "$$PWD/" -c nginx.conf "$$@"
""")

NGINX = Template("""\
# Publishes at $address what sites need of the server, /v1/fleet, and nothing else. Started by proxy.sh, in this folder.
daemon off;
pid proxy/nginx.pid;
events {}
http {
    access_log off;
    server_tokens off;
    client_body_temp_path proxy/body;
    proxy_temp_path proxy/proxy;
    fastcgi_temp_path proxy/fastcgi;
    uwsgi_temp_path proxy/uwsgi;
    scgi_temp_path proxy/scgi;
    server {
        listen $port ssl;
        ${ipv6}listen [::]:$port ssl;  # if sites come by IPv6
        ssl_certificate server.crt;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        client_max_body_size 64m;  # Flower sends what is large in pieces of 5 MB
        location /v1/fleet/ {
            # The path here has nginx pass on what it has matched, and not what was asked for.
            proxy_pass https://127.0.0.1:$inner/v1/fleet/;
            proxy_http_version 1.1;
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_trusted_certificate ca.crt;
        }
        location / {
            return 403;
        }
    }
}
""")

REGISTER = Template("""\
#!/bin/sh
# Tells the running server who is let in, by the keys in keys/ and revoked/: fed-distill sites admit.
set -eu
exec fed-distill sites admit "$$(cd "$$(dirname "$$0")/.." && pwd)" "$$@"
""")

FLWR_CONFIG = Template("""\
[superlink]
default = "prod"

[superlink.prod]
address = "127.0.0.1:$inner"
root-certificates = "$folder/server/ca.crt"
""")

SITE_START = Template("""\
#!/bin/sh
# Starts site $name (Flower's SuperNode). PORT: for its own processes, on this machine only. The python of the
# environment must be on the PATH: activate it first. It ends with an error if it cannot trust the server.
# PYTHONSAFEPATH, -P: no program is taken from this folder.
set -eu
umask 077
cd "$$(dirname "$$0")"
export FLWR_HOME="$$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 XDG_CACHE_HOME="$$PWD/cache" PYTHONSAFEPATH=1
exec python -P -m fed_distill.deploy.supernode site.toml \\
    --root-certificates ca.crt \\
    --auth-supernode-private-key site.key \\
    --node-config "site=\\"$$PWD/site.toml\\"" \\
    --port "$${PORT:-9094}"
""")

SERVICE = Template("""\
# $title. It expects this folder at $place (else change the paths), then:
#   systemctl enable --now $place/$unit
[Unit]
Description=$title
After=network-online.target
Wants=network-online.target

[Service]
User=$user
WorkingDirectory=$place
Environment=PATH=$programs:/usr/bin:/bin
ExecStart=$place/$start
Restart=always
RestartSec=10
UMask=0077
NoNewPrivileges=true
ProtectSystem=strict
ReadWritePaths=$place
PrivateTmp=true
$more
[Install]
WantedBy=multi-user.target
""")

LOW_PORTS = "AmbientCapabilities=CAP_NET_BIND_SERVICE\n"
"""Of a unit: its user may listen on a port below 1024."""

SITE_COMPOSE = Template("""\
# $title. Needs the project's wheel in this folder: pip wheel --no-deps --wheel-dir . PATH-OF-FED-DISTILL
services:
  site:
    build:
      context: .
      dockerfile_inline: |
        FROM python:$python-slim
        COPY *.whl /tmp/
        RUN pip install --no-cache-dir /tmp/*.whl "flwr==$flwr"
    user: "$${UID:-1000}:$${GID:-1000}"
    working_dir: /folder
    command: ./start.sh
    volumes:
      - .:/folder
    restart: unless-stopped
""")

SERVER_COMPOSE = Template("""\
# The server, at 127.0.0.1:$inner of this machine. Needs the project's wheel in this folder:
# pip wheel --no-deps --wheel-dir . PATH-OF-FED-DISTILL
services:
  server:
    build:
      context: .
      dockerfile_inline: |
        FROM python:$python-slim
        COPY *.whl /tmp/
        RUN pip install --no-cache-dir "$$$$(ls /tmp/*.whl)[minilm]" "flwr==$flwr"
    user: "$${UID:-1000}:$${GID:-1000}"
    network_mode: host
    working_dir: /folder
    command: ./start.sh
    volumes:
      - .:/folder
    restart: unless-stopped
$proxy""")

PROXY_SERVICE = """\
  proxy:
    image: nginx:stable
    user: "${UID:-1000}:${GID:-1000}"
    network_mode: host
    working_dir: /folder
    entrypoint: ./proxy.sh
    volumes:
      - .:/folder
    restart: unless-stopped
"""
"""Of the server's compose file: what publishes it."""

MANIFEST = Template("""\
# Site $name: what it has, and what it allows. It wins over whatever the server asks, and is never sent (but its name).
# Paths are relative to this file. Try it: fed-distill sites check .
name = "$name"
state = "state"        # ledgers, and what merchants keep and have answered: back it up, and never restore an old copy
proxy = "proxy.json"   # the task and the proxy set, from the operator
$secret
# trainer = "sequential"  # one merchant after another, whatever the server asks for: slower, in less memory

[server]
address = "$address"  # start.sh reads it here
# The app that runs here is the one that you installed. What else a server sends is refused, by this SHA-256.
app = "$app"

[server.versions]
$versions

[data]
path = "$data"         # .csv, .tsv, .parquet or .jsonl, one labelled example a row
merchants = []         # who of those in the file takes part; empty: all
valid_share = 0.1      # held out to measure on, by group
test_share = 0.2
seed = 0               # which these are: your own choice, and not to be changed later
$part

[data.columns]         # what the columns of the file are called
text = "text"          # query, history, title, review or question
label = "label"
$optional

# [data.labels]        # what its labels mean, where they are not the task's own words
# "3" = "exact"

[observing]
logs = "text"          # or "json": one object a line on stderr, which quotes nothing of your data
metrics = false        # true: counts and budgets for Prometheus, in state/metrics; needs prometheus-client

[limits.rules]         # what this site takes part in, and what a request may cost it
methods = [$methods]
max_rounds = 100       # of one federation
max_update_mib = 64    # one merchant's answer in one round
max_model_mib = 256    # weights of one student
max_steps = 100000     # optimizer steps of one merchant in one round
max_seconds = 3600     # that one request may take
max_memory_gib = 16    # of the process that answers
imports = []           # "package.module:Name" that a request may name, beside what is built in
# hours = "22:00-06:00" # in which it answers
scores = false         # true: tell how many of a merchant's test examples a student has right, without noise

[limits.default]       # privacy of each merchant: $experiment
$units
$max_epsilon
# min_noise = 0.5      # least noise multiplier

# [limits.merchants."NAME"]  # one merchant's own limits
# max_epsilon = 1.0
""")

SITE_INSTRUCTIONS = Template("""\
# Site $name of the federation at $address
The folder that you were sent holds four files and no program: these instructions, `site.toml`, `proxy.json` (public
texts) and `ca.crt` (the certificate by which you know the server). What runs here is the package that you install,
never code from the server.

1. **Install**, with Python 3.11 or newer (best the operator's, $python): `python3 -m venv /opt/fed-distill/venv`, then
   `/opt/fed-distill/venv/bin/pip install WHEEL flwr==$flwr`, where WHEEL is fed-distill $release, the same file as the
   operator's. Put this folder where only the user who will run it can read it, for example into
   `/opt/fed-distill/site`. Do the rest as that user, in this folder, after `. /opt/fed-distill/venv/bin/activate`.
2. **Join**: `fed-distill sites join .` makes your keys and the files that start the site. It prints two things:
   - the SHA-256 of `ca.crt`. The operator tells you it by another way than this folder came, by telephone for example:
     compare them;
   - one line, your public key. Send it to the operator. It is no secret. `site.key` (who you are) and `noise.key`
     (what your noise is drawn from) are: they never leave this machine.
3. **Describe your data**: put your table beside `site.toml` and fill in `[data]`: its path, and what its columns are
   called.
4. **Read `[limits]`**: it wins over whatever the server asks, and a refusal names the rule. As it is written it allows
   $allowed.
   The rest you allow by hand: `scores = true` for test scores, `"none"` in `units` for training without privacy (the
   controls `local` and `fedavg`, personal adaptation), another unit by its name, a higher `max_epsilon` for a second
   private run, and import paths for methods and models that are not built in.
5. **Check**: `fed-distill sites check .` must end without a problem. Only the operator sees whether you are admitted.
6. **Start**: `./start.sh`; or `systemctl enable --now` with the full path of `fed-distill-site.service`; or
   `docker compose up -d`.

Later:
- `fed-distill ledger show state/ledgers` prints what each merchant has spent. Refused requests are in the log. With
  `metrics = true` in `[observing]`, `fed-distill sites metrics .` serves counts and budgets to your Prometheus.
- If a key is lost, or the check says that it lies elsewhere too: `fed-distill sites join . --new-keys`, and send the
  new line. Answers from before are then computed and charged again.
- After an update of the package: put the SHA-256 that the check names into `app` of `site.toml`, and run
  `fed-distill sites join .` again, which rewrites the start files.

What leaves this machine: this site's name and its merchants' names; what the method sends, which the run's report
lists with how each part is protected; with `"none"` in `units`, in a run without privacy, also how many training
examples each merchant has and its training loss; with `scores = true`, how many of a merchant's test examples a student
has right. Requests for scores are checked by the same rules as requests to train. Your rows never leave.
""")

OPERATOR_INSTRUCTIONS = Template("""\
# Running fed-distill across sites
The server runs on this machine, each site on a machine of its own people. `server/` and `ca/` stay here. `ca/ca.key`
signs the server's certificates: keep it offline; only `fed-distill sites init --renew` asks for it. The private key of
a site is made at the site, and never comes here.

The commands belong to the environment that made this folder: activate it. They may be called from any folder.

## Set up
1. **Start the server**: `$folder/server/start.sh`; or `systemctl enable --now $folder/server/$unit`; or
   `docker compose up -d` in `server/`. It answers at 127.0.0.1:$inner, to this machine alone.
$doors
3. **Invite**: give each site its folder in `sites/` and the wheel (`pip wheel --no-deps .` in the project). There is no
   secret in them. Tell its people the SHA-256 of `ca/ca.crt` by another way, by telephone for example:
   `$authority`
4. **Admit**: each site sends back the line that `fed-distill sites join` has printed there.
   `fed-distill sites admit $folder LINE` (or a file with the line) lets the site in, and prints the SHA-256 of its key.
   Compare it with the site's people: whoever has that key is the site.
5. **Check**: `fed-distill sites check $folder` must end without a problem. It says who is registered and there.

## Run
With N the number of sites that the run waits for (without `--sites`: all that are admitted):

    fed-distill sites run experiments/NAME.toml $folder --sites N

It starts the run, prints what happens, and ends with an error if the run has failed. The results are in
`server/runs/`. A run's `name` is for one run and for its `--resume`: sites keep by it what their merchants have learned
and answered, also when you delete the run here.

## Later
- **A further site**: `fed-distill sites init $folder --sites NEW --experiment experiments/NAME.toml`, then 3 and 4.
- **A site must go**: `fed-distill sites revoke $folder NAME`. Its key is never let in again, and it is cut off at once,
  in a run too. It can come back with a new key (`fed-distill sites join . --new-keys` there, then 4).
- **A site has a new key**: `fed-distill sites admit $folder LINE --replace`. The old one is revoked.
- **The server's database is lost** (`server/state.db`): `$folder/server/register.sh` lets all admitted sites in again.
- **Another task or other public data**, and so mostly another experiment, have another proxy set:
  `fed-distill sites init $folder --sites ALL,OF,THEM --experiment experiments/NAME.toml` writes each site's
  `proxy.json` again. Give it to them; nothing else of theirs changes.
- **Another release**: install it here and at every site. Sites pin the app's SHA-256 in `site.toml`; it is another one
  then, and their check names it.
- **A new server certificate**, before the old one ends: `fed-distill sites init $folder --renew`, then restart the
  server and its proxy. Sites need no new file. One that met an expired certificate has ended with an error: systemd and
  Docker start it again, else its people do.
""")

DOORS = Template("""\
2. **Publish it**: Flower answers sites and operators on one port and asks operators for no password, so the server
   itself must not be reached from elsewhere. `$folder/server/proxy.sh` starts nginx, which shows sites `/v1/fleet` at
   $address and nothing else (`server/nginx.conf`); or `systemctl enable --now $folder/server/$proxy_unit`; with Docker
   it has started already. Open port $port in your firewall, and no other. Leave `LISTEN` at 127.0.0.1.""")
"""Step of the operator's instructions, for sites on other machines."""

LOCAL_DOORS = Template("""\
2. **It is not published**: this deployment is for sites on this machine, which come to $address. Flower asks operators
   for no password, so any user of this machine can start runs. For sites elsewhere make another deployment, with
   `--host` and the name by which they reach this machine.""")
"""The same for sites on the server's machine."""
