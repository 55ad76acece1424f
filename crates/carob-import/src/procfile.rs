//! A Procfile: `name: command`, which a shell runs. `release` runs to its end before the rest.

use serde_json::json;

use super::{Draft, ImportError, Program};

pub(super) fn read(text: &str) -> Result<Draft, ImportError> {
    let mut draft = Draft::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |problem: &str| ImportError::Line { line: number + 1, problem: problem.to_owned() };
        let (name, command) = line.split_once(':').ok_or_else(|| wrong("it is not NAME: COMMAND"))?;
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(wrong("a name has letters, digits, `_` and `-`"));
        }
        if command.trim().is_empty() {
            return Err(wrong("the command is missing"));
        }
        let mut program = Program::new(name);
        if draft.programs.iter().any(|known| known.name == program.name) {
            return Err(wrong("the name is taken by a line above"));
        }
        program.is_first = name == "release";
        program.set("command", json!(["sh", "-c", command.trim()]));
        if command.contains("$PORT") {
            draft
                .remark(format!("{name} reads $PORT, which a Procfile's runner sets: add it to `env`, and to `ports`"));
        }
        draft.programs.push(program);
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use crate::{Format, Options, import};

    fn pod(text: &str) -> Result<crate::Imported, String> {
        let options = Options { name: "app".to_owned(), image: Some("app:1".to_owned()) };
        import(Format::Procfile, text, &options).map_err(|error| error.to_string())
    }

    #[test]
    fn lines_are_containers() {
        let made = pod("# comment\nweb: ./serve -p $PORT\nworker_1: ./work\nrelease: ./migrate\n").expect("a Pod");
        let spec = &made.pod["spec"];
        assert_eq!(spec["initContainers"][0]["command"][2], "./migrate");
        assert_eq!(spec["containers"][1]["name"], "worker-1");
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(made.remarks.len(), 1);
        assert!(made.to_yaml().expect("YAML").starts_with("# web reads $PORT"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("web ./serve", "line 1: it is not NAME: COMMAND"),
            ("\nweb:", "line 2: the command is missing"),
            ("a b: x", "line 1: a name has letters"),
            ("a: x\na: y", "line 2: the name is taken"),
            ("", "there is no program in it"),
            ("release: x", "there is no program in it"),
        ] {
            let error = pod(text).expect_err("refused");
            assert!(error.contains(expected), "{error}");
        }
    }
}
