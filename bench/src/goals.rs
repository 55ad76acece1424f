//! What is to be reached, beside what upstream reaches, and what of it was. Pure.

use serde_json::{Value, json};

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    Less,
    More,
}

/// One row of the table.
struct Goal {
    what: &'static str,
    unit: &'static str,
    /// Where the figure is in the document of all measurements.
    at: &'static str,
    /// Upstream v1.36.2 on two cores: kube-apiserver, etcd, kube-scheduler, kubelet, containerd and runc together.
    upstream: Option<f64>,
    goal: f64,
    better: Better,
}

const fn less(what: &'static str, unit: &'static str, at: &'static str, upstream: Option<f64>, goal: f64) -> Goal {
    Goal { what, unit, at, upstream, goal, better: Better::Less }
}

/// `factor` times what upstream does in a second.
const fn times(what: &'static str, at: &'static str, upstream: f64, factor: f64) -> Goal {
    Goal { what, unit: "1/s", at, upstream: Some(upstream), goal: upstream * factor, better: Better::More }
}

const GOALS: [Goal; 28] = [
    less("empty data directory to ready, p50", "ms", "/empty_directory_to_ready/p50_ms", Some(10_000.0), 500.0),
    less("memory (PSS) idle, all parts, no Pods", "MiB", "/idle/pss_mib", Some(642.0), 32.0),
    less("idle CPU, one node, no Pods", "% of a core", "/idle/cpu_percent", Some(7.5), 0.3),
    less("memory a running Pod adds (shim, pause)", "MiB", "/pod_memory/mib_per_pod", Some(6.0), 1.0),
    less("apply to Running, one at a time, p50", "ms", "/start/apply_to_running/p50_ms", Some(495.0), 25.0),
    less("apply to Running, one at a time, p99", "ms", "/start/apply_to_running/p99_ms", None, 80.0),
    less("burst of 30 Pods, all Running", "s", "/burst/all_running_s", Some(3.9), 0.4),
    less("delete to gone, p50", "ms", "/start/delete_to_gone/p50_ms", Some(1508.0), 50.0),
    times("ConfigMap create, 16 clients, durable", "/configmaps/create/per_s", 1146.0, 8.0),
    times("ConfigMap patch, 16 clients, durable", "/configmaps/patch/per_s", 940.0, 8.0),
    times("ConfigMap delete, 16 clients, durable", "/configmaps/delete/per_s", 1172.0, 8.0),
    times("Pod create, 16 clients", "/pods/create/per_s", 773.0, 8.0),
    times("Pod patch, 16 clients", "/pods/patch/per_s", 543.0, 8.0),
    times("Pod delete, 16 clients", "/pods/delete/per_s", 523.0, 8.0),
    times("GET one of 1 000 Pods, 16 clients", "/reads/get/per_s", 1870.0, 10.0),
    times("LIST 1 000 Pods in one reply, 4 clients", "/reads/list/per_s", 32.0, 10.0),
    less(
        "1 000 watchers of 10 clients, update to event, p50",
        "ms",
        "/shared-watchers/update_to_event/p50_ms",
        Some(20.0),
        3.0,
    ),
    less(
        "1 000 watchers of 10 clients, update to event, p99",
        "ms",
        "/shared-watchers/update_to_event/p99_ms",
        Some(44.0),
        8.0,
    ),
    less(
        "1 000 watchers of 1 000 clients, update to event, p50",
        "ms",
        "/watchers/update_to_event/p50_ms",
        Some(20.0),
        3.0,
    ),
    less(
        "1 000 watchers of 1 000 clients, update to event, p99",
        "ms",
        "/watchers/update_to_event/p99_ms",
        Some(44.0),
        8.0,
    ),
    times("create to bound, 1 000 nodes, whole system", "/bound/create_to_bound/per_s", 246.0, 8.0),
    times("the same, with virtual nodes that run the Pods", "/virtual/create_to_bound/per_s", 246.0, 8.0),
    less(
        "10 000 Services of 10 endpoints, change to packet, p99",
        "ms",
        "/services/change_to_packet/p99_ms",
        None,
        20.0,
    ),
    less("the same, first sync of the rules", "ms", "/services/first_sync/write_ms", None, 2000.0),
    less("connection by ClusterIP, over the endpoint's address", "ratio", "/services/connection/ratio", None, 1.03),
    Goal {
        what: "answers for a name of the cluster, a core",
        unit: "1/s",
        at: "/names/answers/per_s_of_a_core",
        upstream: None,
        goal: 50_000.0,
        better: Better::More,
    },
    less("the same, time to the answer, p99", "ms", "/names/latency/p99_ms", None, 1.0),
    less("release binary", "MB", "/binary_mb", Some(500.0), 40.0),
];

/// The share of all cores above which the load generator disturbs what it measures.
const LOAD_SHARE_MAX: f64 = 0.5;

/// The table: each goal with what was measured. `ratio` above one is better than the goal.
///
/// A rate whose load generator took more than half of the cores is judged by the server's CPU time per operation, which may
/// be what `cores` have to give for each operation of the goal's rate.
pub(crate) fn table(measured: &Value, cores: f64) -> Vec<Value> {
    let row = |goal: &Goal| {
        let figure = measured.pointer(goal.at).and_then(Value::as_f64);
        let ratio = figure.map(|figure| ratio(goal.better, figure, goal.goal));
        let mut row = json!({
            "what": goal.what, "unit": goal.unit, "upstream": goal.upstream, "goal": goal.goal, "measured": figure,
            "ratio_to_goal": ratio, "reached": ratio.map(|ratio| ratio >= 1.0),
        });
        let phase = goal.at.rsplit_once('/').and_then(|(phase, _)| measured.pointer(phase));
        let of_phase = |key: &str| phase.and_then(|phase| phase[key].as_f64());
        if let (Better::More, Some(cpu), Some(load)) =
            (goal.better, of_phase("server_cpu_us_per_operation"), of_phase("load_share_of_cores"))
        {
            let allowed = 1e6 * cores / goal.goal;
            row["load_share_of_cores"] = json!(load);
            row["others_share_of_cores"] = json!(of_phase("others_share_of_cores"));
            row["server_cpu_us_per_operation"] = json!(cpu);
            row["goal_cpu_us_per_operation"] = json!(allowed);
            row["cpu_ratio_to_goal"] = json!(allowed / cpu);
            if load > LOAD_SHARE_MAX {
                row["judged_by"] = json!("cpu");
                row["reached"] = json!(cpu <= allowed);
            }
        }
        row
    };
    GOALS.iter().map(row).collect()
}

fn ratio(better: Better, figure: f64, goal: f64) -> f64 {
    match better {
        Better::Less => goal / figure,
        Better::More => figure / goal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<'a>(rows: &'a [Value], what: &str) -> &'a Value {
        rows.iter().find(|row| row["what"].as_str().is_some_and(|text| text.starts_with(what))).expect("a row")
    }

    #[test]
    fn figures_are_put_beside_their_goals() {
        let phase = |per_s: f64, cpu: f64, load: f64| json!({"per_s": per_s, "server_cpu_us_per_operation": cpu, "load_share_of_cores": load});
        let measured = json!({
            "idle": {"pss_mib": 64.0},
            "pods": {"create": phase(12_368.0, 100.0, 0.4)},
            "reads": {"get": phase(9350.0, 100.0, 0.6), "list": phase(160.0, 9000.0, 0.6)},
        });
        let rows = table(&measured, 2.0);
        assert_eq!(row(&rows, "memory (PSS)")["ratio_to_goal"], json!(0.5));
        let create = row(&rows, "Pod create");
        assert_eq!((&create["ratio_to_goal"], &create["reached"]), (&json!(2.0), &json!(true)));
        assert_eq!(create.get("judged_by"), None);
        let get = row(&rows, "GET");
        assert_eq!(
            (&get["ratio_to_goal"], &get["reached"], &get["judged_by"]),
            (&json!(0.5), &json!(true), &json!("cpu"))
        );
        assert_eq!(row(&rows, "LIST")["reached"], json!(false), "9 ms are more than the 6.25 that the goal leaves");
        assert_eq!(row(&rows, "burst")["measured"], Value::Null);
    }
}
