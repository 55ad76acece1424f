//! supervisord.conf (supervisord.org/configuration.html): programs in the order of their priority.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::words::{shell_trick, split};
use super::{Draft, ImportError, Program, Restart, environment, signal};

/// The priority of a program that names none.
const PRIORITY: i64 = 999;

/// One section: its name, its line, and its keys with theirs.
struct Section {
    name: String,
    line: usize,
    keys: BTreeMap<String, (usize, String)>,
}

pub(super) fn read(text: &str) -> Result<Draft, ImportError> {
    let mut draft = Draft::default();
    let mut programs = Vec::new();
    for section in sections(text)? {
        let (kind, name) = section.name.split_once(':').unwrap_or((section.name.as_str(), ""));
        match kind {
            "program" if !name.is_empty() => programs.push(program(name, &section, &mut draft)?),
            "include" => {
                let problem = "files that it includes are not read: put them into one".to_owned();
                return Err(ImportError::Line { line: section.line, problem });
            }
            "supervisord" | "supervisorctl" | "unix_http_server" | "inet_http_server" | "rpcinterface" => {
                draft.remark(format!("[{}] has no counterpart: the node does that, and kubectl", section.name));
            }
            "group" => draft.remark(format!("[{}]: the Pod is the group", section.name)),
            _ => draft.remark(format!("[{}] has no counterpart, and was left out", section.name)),
        }
    }
    // supervisord starts the small numbers first, and waits for none of them.
    programs.sort_by_key(|(priority, _): &(i64, Program)| *priority);
    let last_short = programs.iter().rposition(|(_, program)| program.restart != Restart::Never);
    for (place, (_, mut program)) in programs.into_iter().enumerate() {
        if program.is_first && last_short.is_none_or(|last| place > last) {
            // There is nothing behind it that could wait for it.
            program.is_first = false;
        }
        if program.is_first {
            draft.remark(format!(
                "{0} runs once and comes before others, so it is an init container: they wait for its end, as they did not before",
                program.name
            ));
        }
        draft.programs.push(program);
    }
    Ok(draft)
}

fn sections(text: &str) -> Result<Vec<Section>, ImportError> {
    let mut all: Vec<Section> = Vec::new();
    let mut last_key: Option<String> = None;
    for (number, raw) in text.lines().enumerate() {
        let line = number + 1;
        let wrong = |problem: String| ImportError::Line { line, problem };
        // A comment begins the line, or stands behind a space and a semicolon.
        let plain = raw.split(" ;").next().unwrap_or_default();
        let trimmed = plain.trim();
        if trimmed.is_empty() || trimmed.starts_with([';', '#']) {
            continue;
        }
        if let Some(name) = trimmed.strip_prefix('[') {
            let name = name.strip_suffix(']').ok_or_else(|| wrong("the section's name is not closed".to_owned()))?;
            if all.iter().any(|section| section.name == name) {
                return Err(wrong(format!("[{name}] is there twice")));
            }
            all.push(Section { name: name.to_owned(), line, keys: BTreeMap::new() });
            last_key = None;
            continue;
        }
        let section = all.last_mut().ok_or_else(|| wrong("it is in no section".to_owned()))?;
        if raw.starts_with(char::is_whitespace)
            && let Some((_, value)) = last_key.as_ref().and_then(|key| section.keys.get_mut(key))
        {
            value.push('\n');
            value.push_str(trimmed);
            continue;
        }
        let (key, value) = trimmed.split_once(['=', ':']).ok_or_else(|| wrong("it is not KEY=VALUE".to_owned()))?;
        let key = key.trim().to_ascii_lowercase();
        section.keys.insert(key.clone(), (line, value.trim().to_owned()));
        last_key = Some(key);
    }
    Ok(all)
}

fn program(name: &str, section: &Section, draft: &mut Draft) -> Result<(i64, Program), ImportError> {
    let mut program = Program::new(name);
    if draft.programs.iter().any(|known| known.name == program.name) {
        let problem = format!("two programs would both be called {:?}", program.name);
        return Err(ImportError::Line { line: section.line, problem });
    }
    let (mut priority, mut starts_once, mut grace_s) = (PRIORITY, false, 10);
    let mut expected = vec![0i64];
    program.restart = Restart::OnFailure;
    let command_line = section.keys.get("command").map(|(line, _)| *line);
    let line = command_line.unwrap_or(section.line);
    for (key, (line, value)) in &section.keys {
        let wrong = |problem: String| ImportError::Line { line: *line, problem };
        let number = || value.parse::<i64>().map_err(|_| wrong(format!("{key}={value} is no number")));
        refuse_expansions(key, value, *line)?;
        match key.as_str() {
            "command" => program.set("command", command(value, *line)?),
            "directory" => program.set("workingDir", value.as_str()),
            "environment" => program.set("env", environment(variables(value, *line)?)),
            "priority" => priority = number()?,
            "startsecs" => starts_once = number()? == 0,
            "stopwaitsecs" => grace_s = u64::try_from(number()?).map_err(|_| wrong("it is negative".to_owned()))?,
            "exitcodes" => {
                let codes = value.split(',').map(|code| code.trim().parse());
                expected =
                    codes.collect::<Result<_, _>>().map_err(|_| wrong(format!("exitcodes={value} are no numbers")))?;
            }
            "autorestart" => {
                program.restart = match value.to_ascii_lowercase().as_str() {
                    "true" => Restart::Always,
                    "false" => Restart::Never,
                    "unexpected" => Restart::OnFailure,
                    _ => return Err(wrong(format!("autorestart={value} is none of true, false, unexpected"))),
                }
            }
            "stopsignal" => {
                program.set("lifecycle", json!({"stopSignal": signal(value)}));
                draft.has_signals = true;
            }
            "user" => match value.parse::<u32>() {
                Ok(uid) => program.set("securityContext", json!({"runAsUser": uid})),
                Err(_) => draft.remark(format!(
                    "{name}: user={value} is a name, and a Pod takes numbers: set securityContext.runAsUser"
                )),
            },
            "numprocs" if value != "1" => draft.remark(format!(
                "{name}: numprocs={value}: a Deployment has as many Pods as its `replicas` say; here is one process"
            )),
            // What a Pod does anyway, or what stands for itself.
            "numprocs" | "process_name" | "redirect_stderr" => {}
            "autostart" if value.eq_ignore_ascii_case("true") => {}
            key if key.starts_with("stdout_") || key.starts_with("stderr_") => {
                if !matches!(
                    value.as_str(),
                    "/dev/stdout" | "/dev/fd/1" | "/dev/stderr" | "/dev/fd/2" | "0" | "NONE" | "AUTO"
                ) {
                    draft.remark(format!(
                        "{name}: {key}={value}: what it prints is its log, see `kubectl logs -c {}`",
                        program.name
                    ));
                }
            }
            _ => draft.remark(format!("{name}: {key}={value} has no counterpart, and was left out")),
        }
    }
    if !program.fields.contains_key("command") {
        return Err(ImportError::Line { line, problem: "command is missing".to_owned() });
    }
    if program.restart == Restart::OnFailure && expected != [0] {
        let rule = json!({"action": "Restart", "exitCodes": {"operator": "NotIn", "values": expected}});
        program.set("restartPolicyRules", json!([rule]));
        program.restart = Restart::Never;
        program.set("restartPolicy", Restart::Never.as_str());
    }
    draft.needs_grace(grace_s);
    program.is_first =
        program.restart == Restart::Never && starts_once && !program.fields.contains_key("restartPolicyRules");
    Ok((priority, program))
}

/// `%(ENV_HOME)s` and the like are known to supervisord only.
fn refuse_expansions(key: &str, value: &str, line: usize) -> Result<(), ImportError> {
    match value.find("%(") {
        Some(at) if key != "process_name" => {
            let what: String = value[at..].chars().take_while(|letter| *letter != ')').collect();
            Err(ImportError::Line { line, problem: format!("{what})s is not expanded: write what it stands for") })
        }
        Some(_) | None => Ok(()),
    }
}

fn command(text: &str, line: usize) -> Result<Value, ImportError> {
    let words = split(text).map_err(|source| ImportError::Words { line, source })?;
    if let Some(trick) = shell_trick(&words) {
        let problem =
            format!("no shell reads the command, so {trick:?} is a word of it: say `sh -c '…'` if that is meant");
        return Err(ImportError::Line { line, problem });
    }
    if words.is_empty() {
        return Err(ImportError::Line { line, problem: "the command is empty".to_owned() });
    }
    Ok(json!(words))
}

/// `A="1",B='2',C=3`.
fn variables(text: &str, line: usize) -> Result<Vec<(String, String)>, ImportError> {
    let mut pairs = Vec::new();
    let (mut item, mut quote) = (String::new(), None);
    for letter in text.chars().chain([',']) {
        match (letter, quote) {
            (',' | '\n', None) => {
                let words = split(&item).map_err(|source| ImportError::Words { line, source })?;
                item.clear();
                let [word] = words.as_slice() else {
                    if words.is_empty() {
                        continue;
                    }
                    return Err(ImportError::Line { line, problem: "environment is not KEY=\"VALUE\",…".to_owned() });
                };
                let (key, value) = word
                    .split_once('=')
                    .ok_or_else(|| ImportError::Line { line, problem: format!("{word:?} is not KEY=VALUE") })?;
                pairs.push((key.trim().to_owned(), value.to_owned()));
                continue;
            }
            ('"' | '\'', None) => quote = Some(letter),
            (letter, Some(open)) if letter == open => quote = None,
            _ => {}
        }
        item.push(letter);
    }
    if item.trim_end_matches(',').is_empty() {
        return Ok(pairs);
    }
    Err(ImportError::Line { line, problem: "a quote in environment is not closed".to_owned() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Format, Imported, Options, import};

    fn pod(text: &str) -> Result<Imported, String> {
        let options = Options { name: "app".to_owned(), image: Some("app:1".to_owned()) };
        import(Format::Supervisord, text, &options).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        })
    }

    const CONF: &str = r#"
[supervisord]
nodaemon=true

[program:nginx]
command=nginx -g "daemon off;"
priority=20
autorestart=true
stopsignal=QUIT
stopwaitsecs=25 ; long
environment=A="1,2",B='x y',
  C=3
stdout_logfile=/var/log/nginx.log

[program:prepare]
command=/bin/prepare
priority=1
autorestart=false
startsecs=0

[program:worker]
command=/bin/work
directory=/srv
user=1000
exitcodes=0,2
"#;

    #[test]
    fn programs_are_containers_in_their_order() {
        let made = pod(CONF).expect("a Pod");
        let spec = &made.pod["spec"];
        assert_eq!(spec["initContainers"][0]["name"], "prepare");
        let nginx = &spec["containers"][0];
        assert_eq!(nginx["command"], json!(["nginx", "-g", "daemon off;"]));
        assert_eq!(nginx["lifecycle"]["stopSignal"], "SIGQUIT");
        assert_eq!(nginx["restartPolicy"], "Always");
        assert_eq!(nginx["env"][0], json!({"name": "A", "value": "1,2"}));
        assert_eq!(nginx["env"][2], json!({"name": "C", "value": "3"}));
        let worker = &spec["containers"][1];
        assert_eq!((&worker["workingDir"], &worker["securityContext"]["runAsUser"]), (&json!("/srv"), &json!(1000)));
        assert_eq!(worker["restartPolicyRules"][0]["exitCodes"]["values"], json!([0, 2]));
        assert_eq!((&spec["terminationGracePeriodSeconds"], &spec["os"]["name"]), (&json!(25), &json!("linux")));
        let remarks = made.remarks.join("\n");
        for words in ["[supervisord] has no counterpart", "kubectl logs -c nginx", "prepare runs once"] {
            assert!(remarks.contains(words), "{remarks}");
        }
    }

    #[test]
    fn mistakes_and_tricks_are_named() {
        for (text, expected) in [
            ("[program:a]\ncommand=a | b", "line 2: no shell reads the command, so \"|\""),
            ("[program:a]\ncommand=a 'b", "line 2: a quote is not closed"),
            ("[program:a]\ncommand=%(ENV_HOME)s/x", "line 2: %(ENV_HOME)s is not expanded"),
            ("[program:a]\nautorestart=true", "line 1: command is missing"),
            ("[include]\nfiles=*.conf", "line 1: files that it includes are not read"),
            ("command=a", "line 1: it is in no section"),
            ("[program:a", "line 1: the section's name is not closed"),
            ("[program:a]\ncommand=a\nautorestart=maybe", "line 3: autorestart=maybe"),
            ("[program:a]\ncommand=a\nenvironment=A=\"1", "line 3: a quote in environment"),
            ("[program:a]\ncommand=a\n[program:a]\ncommand=b", "line 3: [program:a] is there twice"),
            ("[supervisord]", "there is no program in it"),
        ] {
            let error = pod(text).expect_err("refused");
            assert!(error.contains(expected), "{error}");
        }
    }
}
