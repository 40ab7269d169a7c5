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
# Starts the server (Flower's SuperLink), with TLS, for registered sites only. LISTEN: the address of this machine that
# it listens on. Anyone who can connect to it can admit sites and start runs: keep 127.0.0.1, and publish the server
# with proxy.sh. flower-superlink must be on the PATH: activate the environment first.
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
# Starts nginx with nginx.conf, which publishes $address. Requires nginx on the PATH. Run it as the server's user.
set -eu
umask 077
cd "$$(dirname "$$0")"
mkdir -p proxy
PATH=$$PATH:/usr/sbin exec nginx -e stderr -p "$$PWD/" -c nginx.conf "$$@"
""")

NGINX = Template("""\
# Publishes only the server's API for sites, /v1/fleet, at $address. Started by proxy.sh, in this folder.
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
        ${ipv6}listen [::]:$port ssl;  # if sites connect by IPv6
        ssl_certificate server.crt;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        client_max_body_size 64m;  # Flower sends large messages in pieces of 5 MB
        location /v1/fleet/ {
            # With this path, nginx passes on the normalized path that it matched, instead of the original one.
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
# Registers the sites in keys/, and revokes those in revoked/, at the running server: fed-distill sites admit.
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
# Starts site $name (Flower's SuperNode). PORT: local port for its own processes. The python of the environment must be
# on the PATH: activate it first. It exits with an error if it cannot verify the server.
# PYTHONSAFEPATH, -P: no code is imported from this folder.
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
# $title. It requires this folder at $place (otherwise change the paths). To enable it:
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
"""Line of a systemd unit that allows its user to listen on ports below 1024."""

SITE_COMPOSE = Template("""\
# $title. Requires the project's wheel in this folder: pip wheel --no-deps --wheel-dir . PATH-OF-FED-DISTILL
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
# The server, at 127.0.0.1:$inner of this machine. Requires the project's wheel in this folder:
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
"""Proxy service of the server's compose file."""

MANIFEST = Template("""\
# Data and limits of site $name. They override all requests of the server, and only the name is ever sent.
# Paths are relative to this file. Validate it with: fed-distill sites check .
name = "$name"
state = "state"        # ledgers, merchants' state and stored answers: back it up, but never restore an old copy
proxy = "proxy.json"   # the task and the proxy set, from the operator
$secret
# trainer = "sequential"  # train one merchant after another, which is slower and needs less memory

[server]
address = "$address"  # start.sh reads it here
# SHA-256 of the installed app, the only one that runs here. Other apps from the server are rejected.
app = "$app"

[server.versions]
$versions

[data]
path = "$data"         # .csv, .tsv, .parquet or .jsonl, one labelled example per row
merchants = []         # merchants of the file that participate; empty: all
valid_share = 0.1      # shares held out for evaluation, by group
test_share = 0.2
seed = 0               # seed of this split: choose your own, and do not change it later
$part

[data.columns]         # names of the columns in the file
text = "text"          # query, history, title, review or question
label = "label"
$optional

# [data.labels]        # the task's class for each label of the file, if they differ
# "3" = "exact"

[observing]
logs = "text"          # or "json": one object per line on stderr, without any of your data
metrics = false        # true: counts and budgets for Prometheus, in state/metrics; requires prometheus-client

[limits.rules]         # federations that this site participates in, and maximum cost of a request
methods = [$methods]
max_rounds = 100       # rounds of one federation
max_update_mib = 64    # size of one merchant's uplink in a round
max_model_mib = 256    # size of the weights of one student
max_steps = 100000     # optimizer steps of one merchant in a round
max_seconds = 3600     # time for one request
max_memory_gib = 16    # memory of the process that handles it
$imports # "package.module:Name" that requests may use, beside built-in parts
# hours = "22:00-06:00" # local hours in which the site participates
scores = false         # true: report the number of a merchant's correct test examples, without noise
$texts # true: send texts of labelled training examples with randomized labels; only if they are public

[limits.default]       # privacy of each merchant: $experiment
$units
$max_epsilon
# min_noise = 0.5      # minimum noise multiplier

# [limits.merchants."NAME"]  # limits of one merchant
# max_epsilon = 1.0
""")

SITE_REHEARSAL = """\
This site belongs to a rehearsal and has joined: start it by `PORT=9101 ./start.sh`, each site with a port of its own.
The rest of this file is for a site on a machine of its own.

"""

SITE_INSTRUCTIONS = Template("""\
# Site $name of the federation at $address
${rehearsal}The folder that you received has four files and no program: these instructions, `site.toml`, `proxy.json`
(public texts) and `ca.crt` (the certificate that verifies the server). Only the package that you install
runs here, never code from the server.

1. **Install**, with Python 3.11 or newer (preferably the operator's version, $python):
   `python3 -m venv /opt/fed-distill/venv`, then
   `/opt/fed-distill/venv/bin/pip install WHEEL flwr==$flwr`, where WHEEL is fed-distill $release, the same file as the
   operator's. Put this folder where only the user that runs the site can read it, for example in
   `/opt/fed-distill/site`. Do the next steps as that user, in this folder, after
   `. /opt/fed-distill/venv/bin/activate`.
2. **Join**: `fed-distill sites join .` generates your keys and the start files of the site. It prints two things:
   - the SHA-256 of `ca.crt`. Compare it with the operator's, which you receive by another channel than this folder, for
     example by telephone;
   - one line with your public key. Send it to the operator. It is not secret. `site.key` (your identity) and
     `noise.key` (the seed of your noise) are secret: they never leave this machine.
3. **Describe your data**: put your table beside `site.toml` and fill in `[data]`: its path, and the names of its
   columns.
4. **Review `[limits]`**: they override all requests of the server, and a refusal has the name of the rule. Initially
   they allow $allowed.
   `imports` names code of others that requests may use: leave there only what you have installed and trust.
   Everything else must be allowed explicitly: `scores = true` for test scores, `texts = true` to send texts of training
   examples, another unit in `units` (`"none"` allows training without privacy, which the controls `local` and `fedavg`
   and personal adaptation need), a higher `max_epsilon` for a second private run, other `methods`, and import paths for
   methods and models that are not built in.
5. **Check**: `fed-distill sites check .` must report no problem. Only the operator can see whether you are admitted.
6. **Start**: `./start.sh`; or `systemctl enable --now` with the full path of `fed-distill-site.service`; or
   `docker compose up -d`.

Later:
- `fed-distill ledger show state/ledgers` prints each merchant's spent budget. Refused requests are in the log. With
  `metrics = true` in `[observing]`, `fed-distill sites metrics .` serves counts and budgets to your Prometheus.
- If a key is lost, or the check reports a copy of it elsewhere: `fed-distill sites join . --new-keys`, and send the new
  line. Earlier answers are then computed and charged again if they are requested.
- After an update of the package: set `app` of `site.toml` to the SHA-256 that the check prints, and run
  `fed-distill sites join .` again, which rewrites the start files.

Data that leave this machine: the names of this site and its merchants; the method's payloads, which the run's report
lists with their protection; with any unit in `units` but `"example"` and `"group"`, also each merchant's number of
training examples and training loss; with `scores = true`, the number of a merchant's correct test examples; with
`texts = true`, the texts of labelled training examples beside randomized labels. Requests for scores are checked by the
same rules as requests to train. Rows leave in no other form.
""")

OPERATOR_INSTRUCTIONS = Template("""\
# Running fed-distill across sites
The server runs on this machine, each site on its own machine. `server/` and `ca/` stay here. `ca/ca.key` signs the
server's certificates: keep it offline; only `fed-distill sites init --renew` needs it. The private key of a site is
generated at the site and never leaves it.

Activate the environment that created this folder. The commands can be run from any folder; modules of your own must be
installed, here and at every site that uses them.

${rehearsal}## Set up
1. **Start the server**: `$folder/server/start.sh`; or `systemctl enable --now $folder/server/$unit`; or
   `docker compose up -d` in `server/`. It listens at 127.0.0.1:$inner, for this machine only.
$doors
3. **Invite**: give each site its folder in `sites/` and the wheel (`pip wheel --no-deps .` in the project). They
   have no secrets. Send the site's staff the SHA-256 of `ca/ca.crt` by another channel, for example by telephone:
   `$authority`
4. **Admit**: each site sends the line that `fed-distill sites join` printed there.
   `fed-distill sites admit $folder LINE` (or a file with the line) registers the site, and prints the SHA-256 of its
   key. Compare it with the site's staff: this key identifies the site.
5. **Check**: `fed-distill sites check $folder` must report no problem. It lists registered and connected sites.

## Run
With N the number of sites that the run waits for (without `--sites`: all admitted sites):

    fed-distill sites run experiments/NAME.toml $folder --sites N

It starts the run, prints its progress, and exits with an error if the run fails. The results are in `server/runs/`. Use
a `name` for one run and its `--resume` only: sites store their merchants' state and answers by it, even after you
delete the run here.

## Later
- **A further site**: `fed-distill sites init $folder --sites NEW --experiment experiments/NAME.toml`, then 3 and 4.
- **Revoke a site**: `fed-distill sites revoke $folder NAME`. Its key is never admitted again, and it is disconnected
  immediately, even during a run. It can join again with a new key (`fed-distill sites join . --new-keys` there, then
  4).
- **A site has a new key**: `fed-distill sites admit $folder LINE --replace`. The old key is revoked.
- **The server's database is lost** (`server/state.db`): `$folder/server/register.sh` registers all admitted sites
  again.
- **Another task or other public data**, as in most other experiments, have another proxy set:
  `fed-distill sites init $folder --sites ALL,OF,THEM --experiment experiments/NAME.toml` rewrites each site's
  `proxy.json`. Send it to them; their other files do not change.
- **Another release**: install it here and at every site. Sites pin the app's SHA-256 in `site.toml`; their check prints
  the new one.
- **A new server certificate**, before the old one expires: `fed-distill sites init $folder --renew`, then restart the
  server and its proxy. Sites need no new file. A site that met an expired certificate has exited with an error: systemd
  and Docker restart it, otherwise its staff must.
""")

REHEARSAL = Template("""\
## Rehearse
The sites of this rehearsal are in `sites/`, with merchants of the simulation and keys of their own: they have joined,
and need no invitation. Start the server and each site in a terminal of its own, a site with a port of its own:

    $folder/server/start.sh
    $folder/server/register.sh                     # once: registers the sites, and ends
    PORT=9101 $folder/sites/NAME/start.sh
    fed-distill sites check $folder
    fed-distill sites run EXPERIMENT $folder

EXPERIMENT is the file from which this folder was made. The rest of this file is for sites on machines of their own,
which get a new folder, made without `--rehearse`.

""")
"""Section of the operator's instructions, for a rehearsal on one machine."""

DOORS = Template("""\
2. **Publish it**: Flower serves sites and operators on one port, without authentication of operators, so that the
   server itself must not be reachable from other machines. `$folder/server/proxy.sh` starts nginx, which publishes only
   `/v1/fleet` for sites at $address (`server/nginx.conf`); or
   `systemctl enable --now $folder/server/$proxy_unit`; with Docker it has started already. Open only port $port in
   your firewall. Keep `LISTEN` at 127.0.0.1.""")
"""Step of the operator's instructions, for sites on other machines."""

LOCAL_DOORS = Template("""\
2. **It is not published**: this deployment is for sites on this machine, which connect to $address. Flower does not
   authenticate operators, so any user of this machine can start runs. For sites on other machines, create another
   deployment with `--host` and a name of this machine that they can resolve.""")
"""Step of the operator's instructions, for sites on the server's machine."""
