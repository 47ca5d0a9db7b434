//! W5: what the guard costs the owner: `pgbench` on a governed table beside the same table
//! unguarded.

use std::fmt::Write as _;

use super::stage::Stage;
use super::{Plan, Row};

/// One script, run on both tables; `{t}` is the table.
struct Script {
    name: &'static str,
    sql: &'static str,
    synchronous: bool,
    target: &'static str,
}

const INSERT: &str = "INSERT INTO {t} (n, body) VALUES (:aid, 'some text of a row');";
const UPDATE: &str = "UPDATE {t} SET n = n + 1 WHERE id = :aid;";
const SELECT: &str = "SELECT n FROM {t} WHERE id = :aid;";
const MANY: &str =
    "INSERT INTO {t} (n, body) SELECT g, 'some text of a row' FROM generate_series(1, 100) g;";
const TRACED: &str = "BEGIN;\nSET LOCAL cadastre.traceparent = \
    '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';\n\
    INSERT INTO {t} (n, body) VALUES (:aid, 'some text of a row');\nCOMMIT;";

const SCRIPTS: [Script; 7] = [
    Script { name: "INSERT", sql: INSERT, synchronous: true, target: "≥ 0.96" },
    Script { name: "UPDATE by key", sql: UPDATE, synchronous: true, target: "≥ 0.96" },
    Script { name: "INSERT with traceparent", sql: TRACED, synchronous: true, target: "≥ 0.88" },
    Script { name: "INSERT", sql: INSERT, synchronous: false, target: "≥ 0.88" },
    Script { name: "UPDATE by key", sql: UPDATE, synchronous: false, target: "≥ 0.88" },
    Script { name: "INSERT of 100 rows", sql: MANY, synchronous: false, target: "≥ 0.99" },
    Script { name: "SELECT by key", sql: SELECT, synchronous: false, target: "1.00" },
];

/// All scripts, each on both tables in every round.
pub(crate) async fn run(plan: &Plan) -> Vec<Row> {
    let mut tables = "CREATE ROLE orders_app LOGIN;".to_owned();
    for table in ["guarded", "plain"] {
        write!(
            tables,
            "CREATE TABLE {table} (id bigserial PRIMARY KEY, n bigint, body text); \
             INSERT INTO {table} (n, body) SELECT g, 'x' FROM generate_series(1, 100000) g; \
             ALTER TABLE {table} OWNER TO orders_app;"
        )
        .expect("a String takes everything");
    }
    let stage = Stage::set(&tables).await;
    let server = stage.serve();
    stage.govern(&server, &["guarded"]).await;
    // Capture would compete for the same two cores; the guard is what is measured. Both tables
    // are published, so that both pay for the WAL that logical decoding needs.
    drop(server);
    let shop = stage.shop().await;
    shop.batch_execute("ALTER PUBLICATION cadastre_shop ADD TABLE plain; CHECKPOINT")
        .await
        .expect("a publication");

    let seconds = if plan.full { 15 } else { 3 };
    let mut rows = Vec::new();
    for script in SCRIPTS {
        let mut rounds = Vec::new();
        for round in 0..plan.rounds {
            let mut tables = ["guarded", "plain"];
            if round % 2 == 1 {
                tables.reverse();
            }
            let mut rates = tables.map(|table| rate(&stage, &script, table, seconds));
            if round % 2 == 1 {
                rates.reverse();
            }
            rounds.push((rates[0], rates[1]));
        }
        let commit = if script.synchronous { "on" } else { "off" };
        let size = format!("{}, synchronous_commit {commit}", script.name);
        rows.push(Row::new("W5 guard", size, "transactions/s", script.target, &rounds));
    }
    rows
}

/// Transactions per second that pgbench reports.
fn rate(stage: &Stage, script: &Script, table: &str, seconds: u32) -> f64 {
    let path = stage.directory.path().join("script.sql");
    let commit = if script.synchronous { "on" } else { "off" };
    let text = format!("\\set aid random(1, 100000)\n{}\n", script.sql.replace("{t}", table));
    std::fs::write(&path, text).expect("a script");
    let output = stage
        .program("pgbench")
        .args(["-n", "-M", "prepared", "-c", "2", "-j", "1", "-T", &seconds.to_string(), "-f"])
        .arg(&path)
        .arg(stage.url("shop"))
        .env("PGOPTIONS", format!("-c synchronous_commit={commit} -c role=orders_app"))
        .output()
        .expect("pgbench runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let rate =
        text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}
