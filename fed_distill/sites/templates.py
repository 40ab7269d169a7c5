"""The files of a deployment that are text: what to start, what a site fills in, and what to do with it all.

``string.Template`` with ``$NAME`` for what is filled in and ``$$`` for a shell's own ``$``.
"""

from string import Template

SERVER_START = Template("""\
#!/bin/sh
# Starts the server (Flower's SuperLink), with TLS and with none but registered sites. LISTEN: which of this machine's
# addresses it answers on. flower-superlink must be on the PATH: activate the environment first.
set -eu
umask 077
cd "$$(dirname "$$0")"
export FLWR_HOME="$$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 XDG_CACHE_HOME="$$PWD/cache"
exec flower-superlink \\
    --host "$${LISTEN:-$listen}" --port $port \\
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
    --enable-supernode-auth --disable-runtime-dependency-installation \\
    --database state.db
""")

REGISTER = Template("""\
#!/bin/sh
# Lets sites in: registers the public keys in keys/, or those that are named, while the server runs.
set -eu
here=$$PWD
cd "$$(dirname "$$0")"
export FLWR_HOME="$$PWD/flwr" FLWR_TELEMETRY_ENABLED=0
sed -i "s|^root-certificates = .*|root-certificates = \\"$$PWD/ca.crt\\"|" flwr/config.toml  # the folder may have moved
[ $$# -gt 0 ] || set -- "$$PWD"/keys/*.pub
tries=15
for key in "$$@"; do
    case $$key in /*) ;; *) key=$$here/$$key ;; esac
    site=$$(basename "$$key" .pub)
    outcome="registered"
    until told=$$(flwr supernode register "$$key" prod --name "$$site" 2>&1); do
        if echo "$$told" | grep -q "already in use"; then
            outcome="registered before"
            break
        elif [ $$tries -gt 0 ] && echo "$$told" | grep -q "is unavailable"; then
            [ $$tries -lt 15 ] || echo "waiting for the server: is server/start.sh running?" >&2
            tries=$$((tries - 1))
            sleep 2
        else
            echo "$$told" >&2
            exit 1
        fi
    done
    echo "$$site: $$outcome"
done
""")

FLWR_CONFIG = Template("""\
[superlink]
default = "prod"

[superlink.prod]
address = "127.0.0.1:$port"
root-certificates = "$folder/server/ca.crt"
""")

SITE_START = Template("""\
#!/bin/sh
# Starts site $name (Flower's SuperNode). PORT: for its own processes, on this machine only. The python of the
# environment must be on the PATH: activate it first. It ends with an error if it cannot trust the server.
set -eu
umask 077
cd "$$(dirname "$$0")"
export FLWR_HOME="$$PWD/flwr" FLWR_TELEMETRY_ENABLED=0 XDG_CACHE_HOME="$$PWD/cache"
exec python -m fed_distill.sites.supernode site.toml \\
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
ExecStart=$place/start.sh
Restart=always
RestartSec=10
UMask=0077
NoNewPrivileges=true
ProtectSystem=strict
ReadWritePaths=$place
PrivateTmp=true

[Install]
WantedBy=multi-user.target
""")

COMPOSE = Template("""\
# $title. Needs the project's wheel in this folder: pip wheel --no-deps --wheel-dir . PATH-OF-FED-DISTILL
services:
  $service:
    build:
      context: .
      dockerfile_inline: |
        FROM python:$python-slim
        COPY *.whl /tmp/
        RUN pip install --no-cache-dir "$$$$(ls /tmp/*.whl)$extra" "flwr==$flwr"
    user: "$${UID:-1000}:$${GID:-1000}"
    working_dir: /folder
    command: ./start.sh
    volumes:
      - .:/folder
    restart: unless-stopped
$ports""")

MANIFEST = Template("""\
# Site $name: what it has, and what it allows. Nothing in here is ever sent, and it wins over whatever the server asks.
# Paths are relative to this file. Try it: fed-distill sites check .
name = "$name"
state = "state"        # ledgers, and what merchants keep and have answered: back it up, and never restore an old copy
proxy = "proxy.json"   # the task and the proxy set, from the operator
$secret
# trainer = "sequential"  # one merchant after another, whatever the server asks for: slower, in less memory

[server]
address = "$address"  # start.sh reads it here

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

[limits.rules]         # what this site takes part in; without a line of the next four, any
methods = [$methods]
max_rounds = 100       # of one federation
max_update_mib = 64    # one merchant's answer in one round
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
# Site $name
1. Install, with Python 3.11 or newer (best the operator's, $python): `python3 -m venv /opt/fed-distill/venv`, then
   `/opt/fed-distill/venv/bin/pip install WHEEL flwr==$flwr`, the wheel that you were given being of fed-distill
   $release. Of other packages another version is a warning of the check, and may move the last digits of a result.
   The systemd unit runs as the user `fed-distill`: make it, and give it this folder (`chown -R`); what follows is
   done as that user, after `. /opt/fed-distill/venv/bin/activate`.
2. Put this folder where only its user can read it, with the modes that its files have (`tar -p`, `scp -p`). `site.key`
   is who you are, and your noise is drawn from `noise.key`, which the first check makes: never send either to anybody.
3. Put your table beside `site.toml` and fill in `[data]`: the path, and what its columns are called. Read `[limits]`:
   it wins over whatever the server asks, and a refusal names the rule. As it is written it allows
   $allowed.
   The rest must be allowed by hand: `scores = true` for test scores, `"none"` in `units` for training without privacy
   (the controls `local` and `fedavg`, personal adaptation), another unit by its name, and a higher `max_epsilon` for a
   second private run.
4. `fed-distill sites check .` must end without a problem. Whether your key is registered the operator alone can see.
5. Start: `./start.sh`, or `$unit` (systemd), or `docker compose up -d`.
6. Later: `fed-distill ledger show state/ledgers` prints what each merchant has spent. A refused request is in the log.
   With `metrics = true` in `[observing]`, `fed-distill sites metrics .` serves counts and budgets to your Prometheus.

What leaves this machine: the names of your merchants; what the method sends, which the run's report lists with how each
part is protected; with `"none"` in `units`, in a run without privacy, also how many training examples each merchant has
and its training loss; with `scores = true`, how many of a merchant's test examples a student has right. Requests for
scores are checked by the same rules as requests to train, and a refused one is in the log with its reason. Your
rows never do. One thing must be trusted: the code of the app comes from the server with each run. Read it, or have it
signed (`flower-supernode --trusted-entities`).
""")

OPERATOR_INSTRUCTIONS = Template("""\
# Running fed-distill across sites
`server/` stays here. Give each site its folder in `sites/` and the project's wheel (`pip wheel --no-deps .`), over a
channel that you trust, then delete your copy of its `site.key`. `ca/ca.key` makes certificates: keep it offline.
Nobody else needs it. What follows is done in the project's folder, in the environment that made this one.

1. `$folder/server/start.sh` starts the server at $address (or the systemd unit beside it, `$unit`, or
   `docker compose up -d` there).
2. `$folder/server/register.sh` lets in the sites whose keys are in `server/keys/`.
3. Each site fills in its `site.toml`, checks it, and starts. `fed-distill sites check $folder` checks your side, and
   says who is registered and there.
4. With `N` the number of sites that a run waits for:

       export FLWR_HOME=$folder/server/flwr
       fed-distill config experiments/NAME.toml --set runtime.sites=N --flower > run.toml
       flwr run . prod --run-config run.toml --stream

   The results are on the server, in the run's folder: `runtime.folder`, from the server's own folder on, the only one
   that the systemd unit lets it write to. A run's `name` is for one run and for its `runtime.resume = true`: sites keep
   by it what their merchants have learned and answered, also when you delete the run here.
5. A further site: `fed-distill sites init $folder --sites NEW --experiment experiments/NAME.toml`, then
   `register.sh`; runs that are to wait for it have an `N` more.
6. Another task or other public data, and so mostly another experiment, have another proxy set:
   `fed-distill sites init $folder --sites ALL,OF,THEM --experiment experiments/NAME.toml` writes each site's
   `proxy.json` anew. Give it to them; nothing else of theirs changes.
7. A new server certificate, before the old one ends: `fed-distill sites init $folder --renew`, then restart the server.
   Sites need no new file. One that met an expired certificate has ended with an error: systemd and Docker start it
   again, else its people do.

**Close the door behind you.** Flower answers sites, operators and its own processes on the same port, and asks
operators for no password: whoever reaches `/v1/control` there can register keys and start runs, which run code at the
sites. So let nothing but `/v1/fleet` through to the sites: start the server with `LISTEN=127.0.0.1` (in the systemd
unit, `Environment=LISTEN=127.0.0.1`), and before it a reverse proxy that shows the server's certificate. For nginx:

    server {
        listen ADDRESS-THAT-SITES-REACH:$port ssl;
        ssl_certificate $folder/server/server.crt;
        ssl_certificate_key $folder/server/server.key;
        client_max_body_size 0;
        location /v1/fleet/ {
            proxy_pass https://127.0.0.1:$port;
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
            proxy_ssl_trusted_certificate $folder/ca/ca.crt;
        }
        location / { return 403; }
    }

`fed-distill sites check` warns a site that finds the door open.
""")
