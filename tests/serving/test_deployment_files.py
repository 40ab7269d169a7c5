"""The files of docs/serving name what exists: settings, ports, routes, commands. Nothing here needs a container."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from fed_distill.serving.service import build_service
from fed_distill.serving.service_config import read_serve_config
from fed_distill.serving.service_files import add_key
from tests.serving.processes import served
from tests.serving.services import until

ROOT = Path(__file__).parents[2]
FILES = ROOT / "docs" / "serving"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"scikit-learn": "sklearn"}


def instructions():
    """The Dockerfile's instructions, by name, as lists of their arguments."""
    found = {}
    lines = (FILES / "Dockerfile").read_text().replace("\\\n", " ")
    for line in lines.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            found.setdefault(name, []).append(rest.strip())
    return found


def command(text):
    """An instruction's command in JSON form, which starts no shell."""
    return json.loads(text[text.index("[") :])


@pytest.fixture
def settings(tmp_path):
    """The settings of the container, in a folder of their own, with a key."""
    folder = tmp_path / "service"
    folder.mkdir()
    shutil.copy(FILES / "serve.toml", folder)
    add_key(folder, "shop", ["rank"])
    return folder


def kubernetes():
    found = {one["kind"]: one for one in yaml.safe_load_all((FILES / "kubernetes.yaml").read_text())}
    assert len(found) == 5
    return found


def requirements():
    lines = (FILES / "requirements.txt").read_text().splitlines()
    return {line for line in lines if not line.startswith("#")}


def name_of(requirement):
    return re.split(r"[\[<>=]", requirement)[0]


def test_serving_requirements_have_the_bounds_of_the_package():
    extras = PROJECT["optional-dependencies"]
    allowed = {*PROJECT["dependencies"], *extras["serve"], *extras["index"]}
    assert requirements() <= allowed
    assert not {"torch", "transformers", "flwr"} & {name_of(one) for one in requirements()}


def test_the_command_of_the_image_serves_without_what_the_image_lacks(exported, settings, tmp_path):
    """The ENTRYPOINT, with packages that are not in requirements.txt made impossible to import, torch among them."""
    lacking = {name_of(one) for one in PROJECT["dependencies"]} - {name_of(one) for one in requirements()}
    lacking |= {"onnx", "onnxscript", "captum"}
    names = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in lacking}
    assert "torch" in names
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {names!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    path = settings / "serve.toml"
    student = json.dumps(str(exported("two-tower")[1]))
    text = path.read_text().replace('"/students/current"', student).replace("port = 8080", "port = 0")
    path.write_text(text.replace("drain_seconds = 10.0", "drain_seconds = 500.0"))
    program, *arguments = command(instructions()["ENTRYPOINT"][0])
    assert (program, *arguments[:2]) == ("fed-distill", "serve", "/service")
    assert PROJECT["scripts"][program] == "fed_distill.cli.main:main"
    environment = {"PYTHONPATH": os.pathsep.join([str(blocked), str(ROOT)])}
    start = (sys.executable, "-m", "fed_distill.cli.main", "serve")
    with served(settings, *arguments[2:], command=start, environment=environment) as service:
        check = [part.replace("8080", str(service.address[1])) for part in command(instructions()["HEALTHCHECK"][0])]
        assert check[0] == "python"
        assert subprocess.run([sys.executable, *check[1:]]).returncode == 0
        service.process.send_signal(signal.SIGTERM)
        until(lambda: subprocess.run([sys.executable, *check[1:]], capture_output=True).returncode == 1)
        service.process.send_signal(signal.SIGTERM)  # ends the drain
        assert service.process.wait(100) == 0
    assert all(json.loads(line) for line in service.lines)


def test_the_image_runs_as_nobody_in_particular_and_copies_what_exists(settings):
    found = instructions()
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", found["USER"][0])
    for copied in found["COPY"]:
        assert all((ROOT / source).exists() for source in copied.split()[:-1])
    assert found["EXPOSE"] == [str(read_serve_config(settings).service.port)]
    assert f":{found['EXPOSE'][0]}/ready" in found["HEALTHCHECK"][0]


def test_kubernetes_names_what_the_service_has(settings):
    config, objects = read_serve_config(settings), kubernetes()
    pod = objects["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    routes = {route.path for route in build_service(config).routes}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["httpGet"]["path"] in routes
        assert container[kind]["httpGet"]["port"] == "http"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"  # which the drain turns
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"  # which it does not
    assert container["ports"] == [{"name": "http", "containerPort": config.service.port}]
    longest = config.service.drain_seconds + config.limits.stop_seconds
    assert pod["spec"]["terminationGracePeriodSeconds"] > longest
    # The drain outlasts the time in which the readiness probe notices it.
    assert config.service.drain_seconds > container["readinessProbe"]["periodSeconds"]
    mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
    assert set(mounted) == {"/service", "/students", "/tmp"}
    assert config.service.student.parent == Path("/students")
    assert set(mounted.values()) == {one["name"] for one in pod["spec"]["volumes"]}
    user = instructions()["USER"][0]
    security = pod["spec"]["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_tag_of_the_image_is_set_in_one_place_for_each_way_to_run_it(settings):
    kustomization = yaml.safe_load((FILES / "kustomization.yaml").read_text())
    (image,) = kustomization["images"]
    (container,) = kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert kustomization["resources"] == ["kubernetes.yaml"]
    assert container["image"] == image["name"]
    assert image["newTag"] == PROJECT["version"]
    text = (FILES / "compose.yaml").read_text()
    replicas = yaml.safe_load(text)["services"]
    found = {re.sub(r":\?[^}]*", "", replicas[name]["image"]) for name in replicas if name != "proxy"}
    assert found == {f"${{SERVICE_IMAGE:-{image['name']}}}:${{SERVICE_TAG}}"}
    assert f"export SERVICE_TAG={PROJECT['version']} " in text
    everything = "".join(path.read_text() for path in FILES.iterdir() if path.name != "kustomization.yaml")
    assert not re.findall(r"fed-distill-serve:\d", everything)


def test_kubernetes_objects_select_the_pods_and_scale_the_deployment():
    objects = kubernetes()
    deployment = objects["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for kind, place in {
        "Deployment": ("selector", "matchLabels"),
        "Service": ("selector",),
        "PodDisruptionBudget": ("selector", "matchLabels"),
        "NetworkPolicy": ("podSelector", "matchLabels"),
    }.items():
        chosen = objects[kind]["spec"]
        for name in place:
            chosen = chosen[name]
        assert chosen.items() <= labels.items(), kind
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "cpu" in container["resources"]["requests"]  # of which the autoscaler takes its share
    assert "replicas" not in deployment["spec"]  # which applying the file again would reset
    scaler, budget = objects["HorizontalPodAutoscaler"]["spec"], objects["PodDisruptionBudget"]["spec"]
    assert scaler["minReplicas"] > budget["minAvailable"] >= 1
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert objects["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": "http"}]


def test_compose_and_its_proxy_name_what_the_service_has(settings):
    config = read_serve_config(settings)
    services = yaml.safe_load((FILES / "compose.yaml").read_text())["services"]
    proxy = (FILES / "haproxy.cfg").read_text()
    replicas = dict(re.findall(r"^    server (\S+) (\S+)$", proxy, re.MULTILINE))
    assert replicas == {name: f"{name}:{config.service.port}" for name in services if name != "proxy"}
    assert set(services["proxy"]["depends_on"]) == set(replicas)
    for name in replicas:
        one = services[name]
        assert (FILES / one["build"]["context"] / one["build"]["dockerfile"]).is_file()
        assert (FILES / one["build"]["context"]).resolve() == ROOT
        assert int(one["stop_grace_period"].removesuffix("s")) > (
            config.service.drain_seconds + config.limits.stop_seconds
        )
        assert one["read_only"] and one["tmpfs"] == ["/tmp"]
        assert [volume.split(":")[-2] for volume in one["volumes"]] == ["/service", "/students"]
    source, place, _ = services["proxy"]["volumes"][0].split(":")
    assert (FILES / source).is_file()
    assert place == "/usr/local/etc/haproxy/haproxy.cfg"
    assert re.search(r"bind :(\d+)", proxy)[1] == services["proxy"]["ports"][0].split(":")[-1]
    seconds = int(re.search(r"check inter (\d+)s fall 1 ", proxy)[1])
    assert config.service.drain_seconds > 2 * seconds
    routes = {route.path for route in build_service(config).routes}
    assert re.search(r"option httpchk GET (\S+)", proxy)[1] in routes


def test_links_of_the_page_lead_somewhere():
    page = ROOT / "docs" / "how-to" / "serving.md"
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert {f"../serving/{path.name}" for path in FILES.iterdir()} <= set(links)
    assert [link for link in links if not (page.parent / link).exists()] == []
