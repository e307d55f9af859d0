//! Pages that hold rubbish: also one whose rubbish looks like a later change is found, by either method.

use std::os::unix::fs::FileExt;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::backups::{as_servers_user, on_the_host};
use crate::kills::seed;
use crate::pitr::archiving;
use crate::postgres::{Installation, StopMode};
use crate::repository::Repository;

#[test]
fn rubbish_with_any_position_is_listed() {
    let mut random = StdRng::seed_from_u64(seed());
    for installation in Installation::all_wanted() {
        let repository = Repository::local();
        let primary = archiving(&repository, installation, 1);
        primary.execute("CREATE TABLE rotten AS SELECT g, repeat('x', 500) FROM generate_series(1, 300) g");
        primary.execute("CHECKPOINT");
        let path = primary.value("SELECT pg_relation_filepath('rotten')");
        primary.stop(StopMode::Fast);
        let file = std::fs::File::options().write(true).open(primary.data_dir().join(&path)).unwrap();
        file.write_all_at(&[0xFF; 8192], 3 * 8192).unwrap();
        let mut page = [0; 8192];
        random.fill(&mut page[..]);
        // A position of far away, whatever was drawn.
        page[3] |= 0x40;
        file.write_all_at(&page, 5 * 8192).unwrap();
        primary.start();
        for words in [&["basebackup", "--json"][..], &["basebackup", "--json", "--remote"]] {
            let outcome = as_servers_user(&on_the_host(&repository, &primary, words)).code(1);
            let report: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
            let expected = [format!("{path}: block 3"), format!("{path}: block 5")];
            assert_eq!(report["bad_pages"], serde_json::json!(expected), "{words:?}");
            assert_eq!(report["damaged"], true);
        }
    }
}
