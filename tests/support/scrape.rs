//! Reads the metrics page of a process, as Prometheus does.

use std::collections::{BTreeMap, BTreeSet};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::wait::within;

/// What Prometheus says that it reads.
pub const OPEN_METRICS: &str =
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

/// A page that was read.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub content_type: String,
    pub text: String,
    rows: BTreeMap<String, f64>,
    /// Type, unit and help by name, as the page describes them.
    pub families: BTreeMap<String, [String; 3]>,
}

impl Page {
    /// Asks `admin`, `host:port`, for its metrics.
    pub async fn of(admin: &str, accept: &str) -> Self {
        let answer = within("metrics are scraped", async {
            let mut stream = TcpStream::connect(admin).await.unwrap();
            let request = format!(
                "GET /metrics HTTP/1.1\r\nhost: {admin}\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        })
        .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let kind = head
            .lines()
            .find_map(|line| line.strip_prefix("content-type: "));
        let mut page = Self {
            content_type: kind.unwrap().to_owned(),
            text: body.to_owned(),
            ..Self::default()
        };
        page.read();
        page
    }

    fn read(&mut self) {
        for line in self.text.lines() {
            if line == "# EOF" {
                continue;
            }
            let Some(said) = line.strip_prefix("# ") else {
                let (row, value) = line.rsplit_once(' ').unwrap();
                let again = self.rows.insert(row.to_owned(), value.parse().unwrap());
                assert_eq!(again, None, "{row} twice");
                continue;
            };
            let words: Vec<&str> = said.splitn(3, ' ').collect();
            let [what, name, rest] = words[..] else {
                panic!("{line}");
            };
            let place = ["TYPE", "UNIT", "HELP"]
                .iter()
                .position(|known| *known == what);
            let family = self.families.entry(name.to_owned()).or_default();
            family[place.unwrap_or_else(|| panic!("{line}"))] = rest.to_owned();
        }
    }

    /// The sum of the rows of `name` that have all these labels, as `label="value"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let rows = self.rows.iter().filter(|(row, _)| {
            let (family, own) = row.split_once('{').unwrap_or((row.as_str(), ""));
            family == name && labels.iter().all(|label| own.contains(label))
        });
        rows.map(|(_, value)| value).sum()
    }

    /// Names of the labels that rows of this name have, without a histogram's own.
    pub fn labels(&self, names: &[String]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for row in self.rows.keys() {
            let Some((family, labels)) = row.split_once('{') else {
                continue;
            };
            if names.iter().any(|name| name == family) {
                let labels = labels.split("=\"").map(|part| {
                    let from = part.rfind(['"', ',']).map_or(0, |at| at + 1);
                    part[from..].to_owned()
                });
                let labels = labels.filter(|label| !label.is_empty() && !label.contains('}'));
                found.extend(labels.filter(|label| label != "le"));
            }
        }
        found
    }

    /// Whether any row begins with this name.
    pub fn has(&self, name: &str) -> bool {
        self.rows
            .keys()
            .any(|row| row == name || row.starts_with(&format!("{name}{{")))
    }
}
