//! Hostile input: the extremes of every number of every kind, patches made at random, and noise on every port. Nothing of it ends
//! the server, makes it answer with an internal error or keeps it from starting again with what was stored.
//!
//! `cargo xtask torment SECONDS` goes on with other seeds for as long as it is told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use carob_testkit::{Cluster, until_none};
use serde_json::{Map, Value, json};

/// Whole numbers at the ends of what a field may be, and just past them.
const EXTREMES: [i64; 7] = [i64::MIN, i32::MIN as i64 - 1, -1, 0, i32::MAX as i64, i32::MAX as i64 + 1, i64::MAX];
/// Where all of it happens. It has a quota of Pods: a ReplicaSet of 2 147 483 647 is made as far as it goes, here as upstream.
const NAMESPACE: &str = "torment";
const PODS_MAX: &str = "40";
/// Levels of schemas that are walked: a Pod template's deepest number is at the seventh.
const LEVELS_MAX: usize = 9;
/// Requests of one curl, which keeps their connection.
const BATCH: usize = 500;
/// What any one request may take.
const PATIENCE_S: u32 = 20;
/// The first seed of the patches and the noise.
const SEED: u64 = 20_261_129;
/// What the server may hold more than before as soon as all is deleted: watches may still ask for all that happened.
const HISTORY_MAX_KIB: u64 = 256 * 1024;
/// What it may hold more once that history has ended, which takes it ten minutes.
const MEMORY_MAX_KIB: u64 = 8 * 1024;
/// Times of two minutes that it has for it.
const ROUNDS_MAX: usize = 8;

/// A small generator (xorshift64*): the tests need no more than the same numbers every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("less than a usize")
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

struct Asked {
    label: String,
    method: &'static str,
    path: String,
    content_type: &'static str,
    body: Value,
}

/// Sends all requests over few connections. The error names those that the server did not answer, or answered with a fault of
/// its own.
fn send(cluster: &Cluster, requests: &[Asked]) -> Result<BTreeMap<u16, usize>> {
    let pki = cluster.data_dir().join("pki");
    let mut answers = BTreeMap::new();
    let mut faults = String::new();
    for (number, batch) in requests.chunks(BATCH).enumerate() {
        let mut config = String::new();
        for (index, asked) in batch.iter().enumerate() {
            let body = cluster.host.dir().join(format!("body-{index}.json"));
            fs_err::write(&body, asked.body.to_string())?;
            writeln!(config, "cacert = \"{}\"", pki.join("ca.crt").display())?;
            writeln!(
                config,
                "cert = \"{}\"\nkey = \"{}\"",
                pki.join("admin.crt").display(),
                pki.join("admin.key").display()
            )?;
            writeln!(config, "url = \"https://127.0.0.1:6443{}\"\nrequest = {}", asked.path, asked.method)?;
            writeln!(config, "header = \"Content-Type: {}\"\ndata = \"@{}\"", asked.content_type, body.display())?;
            writeln!(
                config,
                "output = /dev/null\nmax-time = {PATIENCE_S}\nwrite-out = \"%{{http_code}} {index}\\n\"\nnext"
            )?;
        }
        let file = cluster.host.dir().join(format!("batch-{number}"));
        fs_err::write(&file, config.strip_suffix("next\n").unwrap_or(&config))?;
        // curl's exit status is the last transfer's; each is judged by its line.
        let output = cluster.host.command("curl").arg("--silent").arg("--config").arg(&file).output()?;
        let lines = String::from_utf8(output.stdout)?;
        let mut seen = 0;
        for line in lines.lines() {
            let (code, index) = line.split_once(' ').context("a code and a number")?;
            let (code, index): (u16, usize) = (code.parse()?, index.parse()?);
            seen += 1;
            *answers.entry(code).or_default() += 1;
            if !(200..500).contains(&code) {
                writeln!(faults, "{code} for {}", batch[index].label)?;
            }
        }
        ensure!(seen == batch.len(), "curl told of {seen} of {} requests: {lines}", batch.len());
    }
    ensure!(faults.is_empty(), "requests were not answered, or with a fault of the server:\n{faults}");
    Ok(answers)
}

/// The document of all kinds, with what leads through it.
struct Document(Value);

impl Document {
    fn read(cluster: &Cluster) -> Result<Self> {
        Ok(Self(serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/openapi/v2"])?)?))
    }

    fn schema<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let of_one = schema["allOf"].get(0).unwrap_or(schema);
        match of_one["$ref"].as_str().and_then(|name| name.strip_prefix("#/definitions/")) {
            Some(name) => &self.0["definitions"][name],
            None => schema,
        }
    }

    /// Where objects are made, and the schema of what is made there.
    fn collections(&self) -> Vec<(String, &Value)> {
        let mut found = Vec::new();
        for (path, item) in self.0["paths"].as_object().into_iter().flatten() {
            let parameters = item["post"]["parameters"].as_array().into_iter().flatten();
            let body = parameters.chain(item["parameters"].as_array().into_iter().flatten());
            let Some(schema) = body.into_iter().find(|one| one["in"] == "body").map(|one| self.schema(&one["schema"]))
            else {
                continue;
            };
            let path = path.replace("{namespace}", NAMESPACE);
            if item.get("post").is_some() && !path.contains('{') && schema["properties"]["metadata"].is_object() {
                found.push((path, schema));
            }
        }
        found
    }

    /// The simplest value that has all that is required of it.
    fn sample(&self, schema: &Value, levels: usize) -> Value {
        let schema = self.schema(schema);
        match schema["type"].as_str() {
            Some("integer" | "number") => json!(1),
            Some("boolean") => json!(true),
            Some("array") if levels > 0 => json!([self.sample(&schema["items"], levels - 1)]),
            Some("string") => json!(schema["enum"].get(0).and_then(Value::as_str).unwrap_or("a")),
            Some("object") | None if levels > 0 => {
                let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let fields =
                    required.map(|name| (name.to_owned(), self.sample(&schema["properties"][name], levels - 1)));
                Value::Object(fields.collect())
            }
            _ => json!({}),
        }
    }

    /// Calls `found` with an object for each number below `schema`: all that is required, and the way to the number.
    fn numbers(&self, schema: &Value, base: &Value, path: &mut Vec<String>, found: &mut impl FnMut(&[String], &Value)) {
        let schema = self.schema(schema);
        if path.len() >= LEVELS_MAX {
            return;
        }
        let is_quantity = schema["type"] == "string" && path.iter().any(|name| name == "limits" || name == "requests");
        if matches!(schema["type"].as_str(), Some("integer" | "number")) || is_quantity {
            found(path, base);
            return;
        }
        for (name, below) in schema["properties"].as_object().into_iter().flatten() {
            // Templates have a spec below a spec; whatever else comes again below itself is a schema of schemas.
            let again = name != "spec" && path.contains(name);
            if name == "metadata" || name == "status" || again {
                continue;
            }
            path.push(name.clone());
            self.numbers(below, base, path, found);
            path.pop();
        }
        for (key, step) in [("items", "0"), ("additionalProperties", "memory")] {
            if schema[key].is_object() {
                path.push(step.to_owned());
                self.numbers(&schema[key], base, path, found);
                path.pop();
            }
        }
    }

    /// `base` with `value` at `path`; what is on the way has all that is required of it.
    fn with(&self, schema: &Value, base: &Value, path: &[String], value: &Value) -> Value {
        let schema = self.schema(schema);
        let Some((first, rest)) = path.split_first() else { return value.clone() };
        if schema["items"].is_object() {
            let item = base.get(0).cloned().unwrap_or_else(|| self.sample(&schema["items"], 4));
            return json!([self.with(&schema["items"], &item, rest, value)]);
        }
        let below = match &schema["properties"][first] {
            Value::Null => &schema["additionalProperties"],
            below => below,
        };
        let mut fields = base.as_object().cloned().unwrap_or_else(Map::new);
        let old = fields.get(first).cloned().unwrap_or_else(|| self.sample(below, 4));
        fields.insert(first.clone(), self.with(below, &old, rest, value));
        Value::Object(fields)
    }
}

/// What a kind with a meaning of its own needs besides what its schema requires.
fn meant(kind: &str, mut object: Value) -> Value {
    let pod = json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{ "name": "main", "image": "none.invalid/none", "imagePullPolicy": "Never" }],
    });
    let template = |policy: &str| {
        let mut spec = pod.clone();
        spec["restartPolicy"] = policy.into();
        json!({ "metadata": { "labels": { "app": "a" } }, "spec": spec })
    };
    let spec = match kind {
        "Pod" => pod.clone(),
        "PodTemplate" => {
            object["template"] = template("Always");
            return object;
        }
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            json!({ "selector": { "matchLabels": { "app": "a" } }, "template": template("Always") })
        }
        "StatefulSet" => {
            json!({ "selector": { "matchLabels": { "app": "a" } }, "serviceName": "a", "template": template("Always") })
        }
        "ReplicationController" => json!({ "selector": { "app": "a" }, "template": template("Always") }),
        "Job" => json!({ "template": template("Never") }),
        "CronJob" => {
            json!({ "schedule": "0 0 1 1 *", "jobTemplate": { "spec": { "template": template("Never") } } })
        }
        "Service" => json!({ "ports": [{ "port": 80 }] }),
        "HorizontalPodAutoscaler" => {
            json!({ "maxReplicas": 1, "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "a" } })
        }
        _ => return object,
    };
    object["spec"] = spec;
    object
}

/// An object for each extreme of each number of each kind.
fn extremes(document: &Document) -> Vec<Asked> {
    let mut requests = Vec::new();
    for (path, schema) in document.collections() {
        let gvk = &schema["x-kubernetes-group-version-kind"][0];
        let text = |name: &str| gvk[name].as_str().unwrap_or_default();
        let (group, kind) = (text("group"), text("kind"));
        let api_version =
            if group.is_empty() { text("version").to_owned() } else { format!("{group}/{}", text("version")) };
        let base = meant(kind, document.sample(schema, 5));
        document.numbers(schema, &base, &mut Vec::new(), &mut |field, base| {
            for extreme in EXTREMES {
                let quantity = field.iter().any(|name| name == "limits" || name == "requests");
                let value = if quantity { json!(extreme.to_string()) } else { json!(extreme) };
                let mut body = document.with(schema, base, field, &value);
                body["apiVersion"] = api_version.clone().into();
                body["kind"] = kind.into();
                body["metadata"] = json!({ "generateName": "torment-" });
                let label = format!("{kind} with {} = {extreme}", field.join("."));
                requests.push(Asked {
                    label,
                    method: "POST",
                    path: path.clone(),
                    content_type: "application/json",
                    body,
                });
            }
        });
    }
    requests
}

/// The sound objects that upstream's answers are recorded for, by kind. Those that bound what others may have come last.
fn sound_objects() -> Result<Vec<Value>> {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/carob-api/corpus/verdicts");
    let mut objects = Vec::new();
    for entry in fs_err::read_dir(corpus)? {
        let mut file: Value = serde_json::from_slice(&fs_err::read(entry?.path())?)?;
        objects.push(file["base"].take());
    }
    let bounds = |object: &Value| matches!(object["kind"].as_str(), Some("LimitRange" | "ResourceQuota"));
    objects.sort_by_key(|object| (bounds(object), object["kind"].to_string()));
    Ok(objects)
}

/// The pointers of all numbers and quantities of a sound object.
fn pointers(value: &Value, at: &str, found: &mut Vec<(String, bool)>) {
    match value {
        Value::Number(_) => found.push((at.to_owned(), false)),
        Value::String(text) if text.starts_with(|first: char| first.is_ascii_digit()) => {
            found.push((at.to_owned(), true));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| pointers(item, &format!("{at}/{index}"), found));
        }
        Value::Object(fields) => {
            let below = fields.iter().filter(|(name, _)| !(at.is_empty() && *name == "metadata"));
            below.for_each(|(name, field)| {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers(field, &format!("{at}/{name}"), found);
            });
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Sound objects with an extreme in place of each of their numbers: what schemas alone do not lead to, such as the fields of the
/// one kind of a thing of several.
fn sound_extremes(document: &Document) -> Result<Vec<Asked>> {
    let mut requests = Vec::new();
    for mut base in sound_objects()? {
        let (group, version) = match base["apiVersion"].as_str().context("a version")?.split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), base["apiVersion"].as_str().unwrap_or_default().to_owned()),
        };
        let kind = base["kind"].as_str().context("a kind")?.to_owned();
        let gvk = json!({ "group": group, "version": version, "kind": kind });
        let collections = document.collections();
        let collection = collections.iter().find(|(_, schema)| schema["x-kubernetes-group-version-kind"][0] == gvk);
        let (path, _) = collection.with_context(|| format!("no collection of {gvk}"))?;
        base["metadata"] = json!({ "generateName": "torment-" });
        if kind == "Node" {
            // Nobody would end the Pods of a machine that is not there.
            base["spec"]["unschedulable"] = true.into();
        }
        let mut found = Vec::new();
        pointers(&base, "", &mut found);
        for (pointer, is_text) in found {
            for extreme in EXTREMES {
                let mut body = base.clone();
                let place = body.pointer_mut(&pointer).context("a place")?;
                *place = if is_text { json!(extreme.to_string()) } else { json!(extreme) };
                let label = format!("{kind} with {pointer} = {extreme}");
                let (path, content_type) = (path.clone(), "application/json");
                requests.push(Asked { label, method: "POST", path, content_type, body });
            }
        }
    }
    Ok(requests)
}

fn patches(random: &mut Random, count: usize) -> Vec<Asked> {
    const POINTERS: [&str; 8] = [
        "",
        "/metadata",
        "/metadata/labels",
        "/metadata/labels/a~1b",
        "/spec/containers/0",
        "/spec/containers/-",
        "/spec/tolerations/0/tolerationSeconds",
        "/status",
    ];
    const KINDS: [&str; 3] =
        ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];
    let mut requests = Vec::new();
    for number in 0..count {
        let values = [
            json!(null),
            json!(i64::MAX),
            json!({}),
            json!([]),
            json!("a"),
            json!({ "$patch": "replace" }),
            json!([{ "$patch": "delete", "name": "main" }]),
            json!({ "a": { "b": ["c"] } }),
            json!(1e300),
        ];
        let content_type = *random.pick(&KINDS);
        let body = if content_type == KINDS[0] {
            let operations = (0..=random.below(4)).map(|_| {
                let verb = random.pick(&["add", "remove", "replace", "move", "copy", "test", "none"]);
                json!({ "op": verb, "path": random.pick(&POINTERS), "from": random.pick(&POINTERS), "value": random.pick(&values) })
            });
            Value::Array(operations.collect())
        } else {
            let part = random.pick(&["metadata", "spec", "status", "kind"]);
            let field = random.pick(&[
                "labels",
                "containers",
                "$setElementOrder/containers",
                "tolerations",
                "finalizers",
                "name",
            ]);
            json!({ *part: { *field: random.pick(&values) } })
        };
        requests.push(Asked {
            label: format!("patch {number}: {body}"),
            method: "PATCH",
            path: format!(
                "/api/v1/namespaces/torment/{}",
                random.pick(&["pods/target", "pods/target/status", "configmaps/target"])
            ),
            content_type,
            body,
        });
    }
    requests
}

/// Sends bytes that mean nothing to a port, as they are and after the greeting of TLS.
fn noise(cluster: &Cluster, random: &mut Random, port: u16) -> Result<()> {
    for round in 0..24 {
        let mut bytes: Vec<u8> = match round % 4 {
            0 => b"\x16\x03\x01\x02\x00\x01".to_vec(),
            1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            2 => b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n".to_vec(),
            _ => Vec::new(),
        };
        bytes.extend((0..random.below(4096)).map(|_| random.next().to_le_bytes()[3]));
        let file = cluster.host.dir().join("noise");
        fs_err::write(&file, &bytes)?;
        let send = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && timeout 2 cat {} >&3", file.display());
        // The server may close the connection at the first byte: then the writer fails, which is right.
        cluster.host.command("bash").args(["-c", &send]).stdin(Stdio::null()).stderr(Stdio::null()).status()?;
    }
    Ok(())
}

/// Memory of the server alone, in KiB.
fn memory_kib(cluster: &Cluster) -> Result<u64> {
    let rollup = fs_err::read_to_string(format!("/proc/{}/smaps_rollup", cluster.server_pid()?))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("a line of Pss")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

fn lives(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["get", "--raw", "/readyz"]).map(drop).with_context(|| cluster.log().unwrap_or_default())
}

#[test]
fn extremes_patches_and_noise_hurt_nobody() -> Result<()> {
    let mut cluster = Cluster::start()?;
    let idle = memory_kib(&cluster)?;
    cluster.kubectl(&["create", "namespace", NAMESPACE])?;
    cluster.kubectl(&["create", "quota", "pods", "--namespace", NAMESPACE, &format!("--hard=pods={PODS_MAX}")])?;
    let document = Document::read(&cluster)?;
    let mut requests = extremes(&document);
    ensure!(requests.len() > 5000, "only {} numbers were found in the document", requests.len());
    let sound = sound_extremes(&document)?;
    ensure!(sound.len() > 1000, "only {} numbers were found in sound objects", sound.len());
    requests.extend(sound);
    let answers = send(&cluster, &requests)?;
    ensure!(answers.get(&201).is_some_and(|made| *made > 500), "nearly nothing was stored: {answers:?}");
    lives(&cluster)?;

    cluster.kill_server()?;
    cluster.start_server()?;
    lives(&cluster)?;

    let seconds: u64 = std::env::var("CAROB_TORMENT_SECONDS").map_or(Ok(0), |text| text.parse())?;
    let target = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "target" },
        "spec": { "nodeName": "none", "containers": [{ "name": "main", "image": "none" }] } });
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "target" } });
    let made = [("pods", target), ("configmaps", map)].map(|(plural, body)| Asked {
        label: format!("make {plural}/target"),
        method: "POST",
        path: format!("/api/v1/namespaces/torment/{plural}"),
        content_type: "application/json",
        body,
    });
    let (mut seed, watch) = (SEED, Watch::start());
    loop {
        let mut random = Random(seed);
        send(&cluster, &made)?;
        send(&cluster, &patches(&mut random, 1000)).with_context(|| format!("seed {seed}"))?;
        for port in [6443, 10250] {
            noise(&cluster, &mut random, port).with_context(|| format!("seed {seed}"))?;
        }
        lives(&cluster).with_context(|| format!("seed {seed}"))?;
        if watch.seconds() >= seconds {
            break;
        }
        seed += 1;
    }

    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    until_none("namespaces that are to go", || {
        let names = cluster.kubectl(&["get", "namespaces", "--output=name"])?;
        Ok(names.lines().filter(|name| name.ends_with(NAMESPACE)).map(str::to_owned).collect())
    })?;
    let now = memory_kib(&cluster)?;
    ensure!(now < idle + HISTORY_MAX_KIB, "{idle} KiB before, {now} KiB now");
    if seconds == 0 {
        return Ok(());
    }
    let comes_back = || {
        until_none("memory that was not held before", || {
            let more = memory_kib(&cluster)?.saturating_sub(idle);
            Ok(if more < MEMORY_MAX_KIB { Vec::new() } else { vec![more] })
        })
    };
    let last = (0..ROUNDS_MAX).map(|_| comes_back()).find(Result::is_ok);
    last.unwrap_or_else(comes_back)
}

struct Watch(std::time::Instant);

impl Watch {
    #[expect(clippy::disallowed_methods, reason = "a test that goes on for as long as it is told")]
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn seconds(&self) -> u64 {
        self.0.elapsed().as_secs()
    }
}
