//! PostgreSQL as a StatefulSet with claims: its data outlives Pods, the database's and the server's death, and a resize.

use anyhow::{Context, Result};
use carob_testkit::{Cluster, until_none};
use serde_json::{Value, json};

/// Rows that are there from the beginning.
const ROWS: usize = 1000;
/// The user that the image's database runs as.
const POSTGRES_UID: u32 = 999;

fn databases() -> Value {
    let ready = json!({"exec": {"command": ["pg_isready", "-h", "/tmp", "-U", "postgres"]}, "periodSeconds": 1});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"}, "spec": {
            "clusterIP": "None", "selector": {"app": "db"}, "ports": [{"name": "sql", "port": 5432}]}},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
            "replicas": 2, "serviceName": "db", "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                "securityContext": {"runAsUser": POSTGRES_UID, "runAsGroup": POSTGRES_UID, "fsGroup": POSTGRES_UID},
                "containers": [{"name": "postgres", "image": "postgres:15",
                    "env": [{"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"}],
                    "ports": [{"name": "sql", "containerPort": 5432}], "readinessProbe": ready,
                    "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "256Mi"}}}}]}}]})
}

/// Runs statements in a replica's database and returns what they answer.
fn sql(cluster: &Cluster, pod: &str, statements: &str) -> Result<String> {
    let client = ["psql", "-h", "/tmp", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-qAtc", statements];
    let answer = cluster.kubectl(&[&["exec", pod, "--"], &client[..]].concat())?;
    Ok(answer.trim().to_owned())
}

fn count(cluster: &Cluster, pod: &str) -> Result<usize> {
    sql(cluster, pod, "SELECT count(*) FROM rows")?.parse().context("a number of rows")
}

/// Waits until the container has been started once more, and answers.
fn wait_for_restart(cluster: &Cluster, pod: &str) -> Result<()> {
    until_none("databases that have not started again", || {
        let status = cluster.get(&["pod", pod])?["status"]["containerStatuses"][0].clone();
        let is_back = status["restartCount"] == 1 && status["ready"] == true;
        Ok(if is_back { Vec::new() } else { vec![status] })
    })
}

#[test]
fn a_database_keeps_its_rows_whatever_ends() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import(&["postgres"])?;
    let manifest = cluster.host.dir().join("databases.json");
    fs_err::write(&manifest, databases().to_string())?;
    cluster.kubectl(&["apply", "-f", manifest.to_str().context("a UTF-8 path")?])?;
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=120s"])?;

    // Each replica has a volume of its own.
    let fill = format!("CREATE TABLE rows AS SELECT n, md5(n::text) AS hash FROM generate_series(1, {ROWS}) AS n");
    sql(&cluster, "db-0", &fill)?;
    sql(&cluster, "db-1", "CREATE TABLE rows (n int); INSERT INTO rows VALUES (1)")?;
    assert_eq!((count(&cluster, "db-0")?, count(&cluster, "db-1")?), (ROWS, 1));
    let through_dns = "psql -h db-0.db -U postgres -Atc 'SELECT count(*) FROM rows'";
    let seen = cluster.kubectl(&["exec", "db-1", "--", "sh", "-c", through_dns])?;
    assert_eq!(seen.trim(), ROWS.to_string(), "replicas find each other by name");

    // Its Pod is deleted: another one goes on with the volume.
    let first = cluster.get(&["pod", "db-0"])?["metadata"]["uid"].clone();
    cluster.kubectl(&["delete", "pod", "db-0"])?;
    cluster.kubectl(&["rollout", "status", "statefulset/db", "--timeout=120s"])?;
    assert_ne!(cluster.get(&["pod", "db-0"])?["metadata"]["uid"], first);
    assert_eq!(count(&cluster, "db-0")?, ROWS);

    // The database ends without writing anything out: what was committed is there after its recovery.
    sql(&cluster, "db-0", "INSERT INTO rows VALUES (0, 'committed')")?;
    // The command may end with its container.
    let ended = cluster.kubectl_command(&["exec", "db-0", "--", "pg_ctl", "stop", "--mode=immediate"]).output()?;
    wait_for_restart(&cluster, "db-0").with_context(|| format!("{ended:?}"))?;
    assert_eq!(count(&cluster, "db-0")?, ROWS + 1);

    // carob is killed: the databases run on, and rows of that time stay.
    cluster.kill_server()?;
    cluster.start_server()?;
    sql(&cluster, "db-0", "INSERT INTO rows VALUES (-1, 'after')")?;
    assert_eq!(count(&cluster, "db-0")?, ROWS + 2);
    assert_eq!(cluster.get(&["pod", "db-0"])?["status"]["containerStatuses"][0]["restartCount"], 1);

    // The claim grows while the database runs.
    let larger = r#"{"spec": {"resources": {"requests": {"storage": "512Mi"}}}}"#;
    cluster.kubectl(&["patch", "pvc", "data-db-0", "-p", larger])?;
    until_none("claims that have not grown", || {
        let capacity = cluster.get(&["pvc", "data-db-0"])?["status"]["capacity"]["storage"].clone();
        Ok(if capacity == "512Mi" { Vec::new() } else { vec![capacity] })
    })?;
    assert_eq!((count(&cluster, "db-0")?, count(&cluster, "db-1")?), (ROWS + 2, 1));
    Ok(())
}
