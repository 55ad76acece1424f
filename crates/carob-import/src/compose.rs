//! A compose file (compose-spec.io): services that share a Pod's network and may share its volumes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::words::split;
use super::{Draft, ImportError, Program, Restart, environment, label, signal};

/// What a Pod is anyway, or what other commands do.
const UNDERSTOOD: [&str; 4] = ["container_name", "hostname", "image", "depends_on"];

pub(super) fn read(text: &str) -> Result<Draft, ImportError> {
    let file: Value = serde_saphyr::from_str(text).map_err(ImportError::Yaml)?;
    let at = |problem: &str| ImportError::Place { place: "the file".to_owned(), problem: problem.to_owned() };
    let services = file.get("services").and_then(Value::as_object).ok_or_else(|| at("it has no `services`"))?;
    let mut draft = Draft::default();
    for key in file.as_object().into_iter().flatten().map(|(key, _)| key) {
        if !matches!(key.as_str(), "services" | "version" | "name" | "volumes") {
            draft.remark(format!("{key} has no counterpart in a Pod, and was left out"));
        }
    }
    let completed = completed_first(services);
    let mut volumes = BTreeMap::new();
    for name in order(services)? {
        let service = services.get(&name).and_then(Value::as_object);
        let service = service.ok_or_else(|| place(&name, "it is not a map"))?;
        let mut program = program(&name, service, &mut draft, &mut volumes)?;
        if draft.programs.iter().any(|known| known.name == program.name) {
            return Err(place(&name, &format!("two services would both be called {:?}", program.name)));
        }
        program.is_first = completed.contains(&name);
        draft.programs.push(program);
    }
    draft.volumes = volumes.into_values().collect();
    if draft.programs.len() > 1 {
        draft.remark(
            "the services reach each other at localhost: they share one address, so no two may listen on one port, and names of \
             services are no names of hosts any more",
        );
    }
    Ok(draft)
}

fn place(service: &str, problem: &str) -> ImportError {
    ImportError::Place { place: format!("services.{service}"), problem: problem.to_owned() }
}

/// What a service waits for, and how.
fn depends(service: &Value) -> Vec<(String, String)> {
    match service.get("depends_on") {
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).map(|name| (name.to_owned(), String::new())).collect()
        }
        Some(Value::Object(all)) => {
            let condition = |how: &Value| how.get("condition").and_then(Value::as_str).unwrap_or_default().to_owned();
            all.iter().map(|(name, how)| (name.clone(), condition(how))).collect()
        }
        _ => Vec::new(),
    }
}

/// Services whose end others wait for.
fn completed_first(services: &Map<String, Value>) -> BTreeSet<String> {
    let all = services.values().flat_map(depends);
    all.filter(|(_, condition)| condition == "service_completed_successfully").map(|(name, _)| name).collect()
}

/// The services, each behind those that it depends on.
fn order(services: &Map<String, Value>) -> Result<Vec<String>, ImportError> {
    let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, service) in services {
        let needs: BTreeSet<String> = depends(service).into_iter().map(|(name, _)| name).collect();
        if let Some(missing) = needs.iter().find(|need| !services.contains_key(*need)) {
            return Err(place(name, &format!("it depends on {missing:?}, which is not there")));
        }
        left.insert(name.clone(), needs);
    }
    let mut sorted = Vec::new();
    while !left.is_empty() {
        let ready = left.iter().find(|(_, needs)| needs.is_empty()).map(|(name, _)| name.clone());
        let Some(ready) = ready else {
            let name = left.keys().next().cloned().unwrap_or_default();
            return Err(place(&name, "it depends on itself, by way of others"));
        };
        left.remove(&ready);
        for needs in left.values_mut() {
            needs.remove(&ready);
        }
        sorted.push(ready);
    }
    Ok(sorted)
}

fn program(
    name: &str,
    service: &Map<String, Value>,
    draft: &mut Draft,
    volumes: &mut BTreeMap<String, Value>,
) -> Result<Program, ImportError> {
    let mut program = Program::new(name);
    program.restart = Restart::Never;
    if let Some(image) = service.get("image") {
        let image = image.as_str().ok_or_else(|| place(name, "image is not a text"))?;
        program.set("image", image);
    }
    let mut context = Map::new();
    for (key, value) in service {
        let wrong =
            |problem: &str| ImportError::Place { place: format!("services.{name}.{key}"), problem: problem.to_owned() };
        let text = || value.as_str().ok_or_else(|| wrong("it is not a text"));
        match key.as_str() {
            "entrypoint" => program.set("command", words(value).map_err(|why| wrong(&why))?),
            "command" => program.set("args", words(value).map_err(|why| wrong(&why))?),
            "environment" => program.set("env", environment(variables(value).map_err(|why| wrong(&why))?)),
            "working_dir" => program.set("workingDir", text()?),
            "tty" | "stdin_open" if value == &Value::Bool(false) => {}
            "tty" => program.set("tty", true),
            "stdin_open" => program.set("stdin", true),
            "restart" => program.restart = restart(text()?).ok_or_else(|| wrong("it is no policy"))?,
            "stop_signal" => {
                program.set("lifecycle", json!({"stopSignal": signal(text()?)}));
                draft.has_signals = true;
            }
            "stop_grace_period" => draft.needs_grace(seconds(value).ok_or_else(|| wrong("it is no duration"))?),
            "user" => user(name, value, &mut context, draft),
            "privileged" => {
                context.insert("privileged".to_owned(), value.clone());
            }
            "read_only" => {
                context.insert("readOnlyRootFilesystem".to_owned(), value.clone());
            }
            "cap_add" | "cap_drop" => {
                let kind = if key == "cap_add" { "add" } else { "drop" };
                let capabilities = context.entry("capabilities").or_insert_with(|| json!({}));
                capabilities[kind] = value.clone();
            }
            "network_mode" if value == "host" => draft.host_network = true,
            "ports" => program.set("ports", ports(value, &mut draft.remarks, name).map_err(|why| wrong(&why))?),
            "expose" => draft.remark(format!("{name}: expose: every port of a Pod can be reached anyway")),
            "volumes" => {
                let mounts = mounts(name, value, volumes, &mut draft.remarks).map_err(|why| wrong(&why))?;
                program.set("volumeMounts", mounts);
            }
            "healthcheck" => healthcheck(value, &mut program).map_err(|why| wrong(&why))?,
            key if UNDERSTOOD.contains(&key) => {}
            "build" => draft.remark(format!("{name}: build: build the image, import it, and name it")),
            _ => draft.remark(format!("{name}: {key} has no counterpart, and was left out")),
        }
    }
    if !context.is_empty() {
        program.set("securityContext", Value::Object(context));
    }
    Ok(program)
}

/// A list, or a text that is split as a shell would.
fn words(value: &Value) -> Result<Value, String> {
    match value {
        Value::String(text) => Ok(json!(split(text).map_err(|error| error.to_string())?)),
        Value::Array(items) => {
            let plain = |item: &Value| match item {
                Value::String(text) => Ok(text.clone()),
                Value::Number(number) => Ok(number.to_string()),
                _ => Err("it is no list of words".to_owned()),
            };
            Ok(json!(items.iter().map(plain).collect::<Result<Vec<_>, _>>()?))
        }
        Value::Null => Ok(json!([])),
        _ => Err("it is neither a text nor a list".to_owned()),
    }
}

fn variables(value: &Value) -> Result<Vec<(String, String)>, String> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Null => Err("a value that the shell around compose has is not known here".to_owned()),
        _ => Err("a value is neither text nor number".to_owned()),
    };
    match value {
        Value::Object(map) => map.iter().map(|(key, value)| Ok((key.clone(), scalar(value)?))).collect(),
        Value::Array(items) => {
            let pair = |item: &Value| {
                let text = item.as_str().ok_or("an entry is not a text")?;
                let (key, value) =
                    text.split_once('=').ok_or("a value that the shell around compose has is not known here")?;
                Ok((key.to_owned(), value.to_owned()))
            };
            items.iter().map(pair).collect()
        }
        _ => Err("it is neither a map nor a list".to_owned()),
    }
}

fn restart(policy: &str) -> Option<Restart> {
    match policy.split(':').next()? {
        "always" | "unless-stopped" => Some(Restart::Always),
        "on-failure" => Some(Restart::OnFailure),
        "no" => Some(Restart::Never),
        _ => None,
    }
}

/// `1m30s`, or a number of seconds.
fn seconds(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => {
            let duration: jiff::SignedDuration = text.parse().ok()?;
            u64::try_from(duration.as_secs()).ok()
        }
        _ => None,
    }
}

fn user(name: &str, value: &Value, context: &mut Map<String, Value>, draft: &mut Draft) {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (user, group) = text.split_once(':').unwrap_or((text.as_str(), ""));
    for (field, id) in [("runAsUser", user), ("runAsGroup", group)] {
        match id.parse::<u32>() {
            Ok(id) => {
                context.insert(field.to_owned(), id.into());
            }
            Err(_) if id.is_empty() => {}
            Err(_) => draft.remark(format!("{name}: user: {id} is a name, and a Pod takes numbers: set {field}")),
        }
    }
}

/// `8080:80`, `127.0.0.1:8080:80/udp`, `80`.
fn ports(value: &Value, remarks: &mut Vec<String>, name: &str) -> Result<Value, String> {
    let items = value.as_array().ok_or("it is not a list")?;
    let mut all = Vec::new();
    for item in items {
        let text = match item {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return Err("an entry is not `HOST:CONTAINER`".to_owned()),
        };
        let (text, protocol) = text.split_once('/').unwrap_or((text.as_str(), "tcp"));
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port"));
        let parts: Vec<&str> = text.rsplitn(3, ':').collect();
        let mut port = json!({"containerPort": number(parts[0])?, "protocol": protocol.to_ascii_uppercase()});
        if let Some(host) = parts.get(1).filter(|host| !host.is_empty()) {
            port["hostPort"] = number(host)?.into();
            remarks.push(format!(
                "{name}: ports: the node's port {host} is taken by one Pod; a Service serves any number"
            ));
        }
        if let Some(ip) = parts.get(2) {
            port["hostIP"] = (*ip).into();
        }
        all.push(port);
    }
    Ok(Value::Array(all))
}

/// `name:/path`, `/host:/path:ro`, `/path`.
fn mounts(
    name: &str,
    value: &Value,
    volumes: &mut BTreeMap<String, Value>,
    remarks: &mut Vec<String>,
) -> Result<Value, String> {
    let items = value.as_array().ok_or("it is not a list")?;
    let mut all = Vec::new();
    for item in items {
        let text = item.as_str().ok_or("an entry is not `VOLUME:PATH`")?;
        let parts: Vec<&str> = text.split(':').collect();
        let (source, path, mode) = match parts.as_slice() {
            [path] => ("", *path, ""),
            [source, path] => (*source, *path, ""),
            [source, path, mode] => (*source, *path, *mode),
            _ => return Err(format!("{text:?} is not `VOLUME:PATH[:MODE]`")),
        };
        if source.starts_with(['.', '~']) {
            return Err(format!("{source:?} depends on where compose runs: write the whole path"));
        }
        let volume = if source.is_empty() { label(&format!("{name}{path}")) } else { label(source) };
        let made = if source.starts_with('/') {
            json!({"name": volume, "hostPath": {"path": source}})
        } else {
            if !source.is_empty() && !volumes.contains_key(&volume) {
                remarks.push(format!(
                    "the volume {source} is shared in the Pod and ends with it: take a PersistentVolumeClaim for what is to last"
                ));
            }
            json!({"name": volume, "emptyDir": {}})
        };
        volumes.insert(volume.clone(), made);
        let mut mount = json!({"name": volume, "mountPath": path});
        if mode.split(',').any(|word| word == "ro") {
            mount["readOnly"] = true.into();
        }
        all.push(mount);
    }
    Ok(Value::Array(all))
}

/// A container that is not healthy gets no traffic; compose would not restart it either.
fn healthcheck(value: &Value, program: &mut Program) -> Result<(), String> {
    if value.get("disable") == Some(&Value::Bool(true)) {
        return Ok(());
    }
    let command = match value.get("test") {
        Some(Value::String(text)) => json!(["sh", "-c", text]),
        Some(Value::Array(items)) => match items.split_first() {
            Some((kind, _)) if kind == "NONE" => return Ok(()),
            Some((kind, rest)) if kind == "CMD" => json!(rest),
            Some((kind, rest)) if kind == "CMD-SHELL" => {
                json!(["sh", "-c", rest.first().and_then(Value::as_str).unwrap_or_default()])
            }
            _ => return Err("test begins with none of NONE, CMD, CMD-SHELL".to_owned()),
        },
        _ => return Err("test is missing".to_owned()),
    };
    let mut probe = json!({"exec": {"command": command}});
    for (from, to) in
        [("interval", "periodSeconds"), ("timeout", "timeoutSeconds"), ("start_period", "initialDelaySeconds")]
    {
        if let Some(given) = value.get(from) {
            probe[to] = seconds(given).ok_or_else(|| format!("{from} is no duration"))?.max(1).into();
        }
    }
    if let Some(retries) = value.get("retries") {
        probe["failureThreshold"] = retries.clone();
    }
    program.set("readinessProbe", probe);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Format, Imported, Options, import};

    fn pod(text: &str) -> Result<Imported, String> {
        let options = Options { name: "app".to_owned(), image: None };
        import(Format::Compose, text, &options).map_err(|error| error.to_string())
    }

    const FILE: &str = r#"
services:
  web:
    image: nginx
    ports: ["8080:80", "127.0.0.1:53:53/udp"]
    volumes: ["pages:/usr/share/nginx/html:ro", "/etc/ssl:/ssl"]
    depends_on: {migrate: {condition: service_completed_successfully}, db: {condition: service_started}}
    restart: unless-stopped
    healthcheck: {test: ["CMD", "curl", "-f", "localhost"], interval: 1m30s, retries: 2}
    user: "1000:app"
    networks: [front]
  db:
    image: postgres
    environment: {POSTGRES_PASSWORD: x, N: 3}
    volumes: ["pages:/pages"]
    restart: on-failure
    stop_signal: INT
    stop_grace_period: 1m
  migrate: {image: app, command: "./migrate --all 'a b'", cap_drop: [ALL]}
volumes: {pages: {}}
networks: {front: {}}
"#;

    #[test]
    fn services_are_containers() {
        let made = pod(FILE).expect("a Pod");
        let spec = &made.pod["spec"];
        assert_eq!(spec["initContainers"][0]["args"], json!(["./migrate", "--all", "a b"]));
        assert_eq!(spec["initContainers"][0]["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        let (db, web) = (&spec["containers"][0], &spec["containers"][1]);
        assert_eq!((&db["name"], &db["restartPolicy"]), (&json!("db"), &json!("OnFailure")));
        assert_eq!(
            web["ports"][1],
            json!({"containerPort": 53, "hostPort": 53, "hostIP": "127.0.0.1", "protocol": "UDP"})
        );
        assert_eq!(web["volumeMounts"][0]["readOnly"], true);
        assert_eq!(
            (&web["readinessProbe"]["periodSeconds"], &web["readinessProbe"]["failureThreshold"]),
            (&json!(90), &json!(2))
        );
        assert_eq!(web["securityContext"], json!({"runAsUser": 1000}));
        assert_eq!(spec["volumes"].as_array().map(Vec::len), Some(2));
        assert_eq!(spec["terminationGracePeriodSeconds"], 60);
        let remarks = made.remarks.join("\n");
        for words in ["networks has no counterpart", "app is a name", "share one address", "ends with it"] {
            assert!(remarks.contains(words), "{remarks}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("a: 1", "the file: it has no `services`"),
            ("services: {a: 1}", "services.a: it is not a map"),
            ("services: {a: {image: x, depends_on: [b]}}", "services.a: it depends on \"b\", which is not there"),
            ("services: {a: {image: x, depends_on: [a]}}", "services.a: it depends on itself"),
            ("services: {a: {command: x}}", "the image of \"a\" is not known"),
            (
                "services: {a: {image: x, volumes: ['./a:/a']}}",
                "services.a.volumes: \"./a\" depends on where compose runs",
            ),
            ("services: {a: {image: x, ports: ['a:80']}}", "services.a.ports: \"a\" is not a port"),
            ("services: {a: {image: x, environment: [A]}}", "services.a.environment: a value that the shell"),
            ("services: {a: {image: x, command: \"a 'b\"}}", "services.a.command: a quote is not closed"),
            ("services: {}", "there is no program in it"),
            ("services: [", "it is not YAML"),
        ] {
            let error = pod(text).expect_err("refused");
            assert!(error.contains(expected), "{error}");
        }
    }
}
