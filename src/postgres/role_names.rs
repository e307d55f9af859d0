//! The names of roles in a cluster's files: whoever wants to log in to a restored server must know one first.
//!
//! Only roles that may do everything and log in. What was changed in WAL that is not replayed yet is not seen.
//!
//! Sources: `FormData_pg_authid` in `catalog/pg_authid.h`, `PageHeaderData` and `ItemIdData` in `storage/`, `HeapTupleHeaderData` in
//! `access/htup_details.h`, `RelMapFile` in `utils/cache/relmapper.c`. The same in PostgreSQL 13 to 18.

/// The file of `pg_authid` below `global/`, by the content of `global/pg_filenode.map`.
pub fn file(map: &[u8]) -> u32 {
    const PG_AUTHID: u32 = 1260;
    /// Behind the magic number and the count.
    const ENTRIES: usize = 8;
    let pairs = map.get(ENTRIES..).unwrap_or_default().chunks_exact(8);
    let mapped = pairs.filter_map(|pair| (number(pair, 0)? == PG_AUTHID).then(|| number(pair, 4)).flatten()).next();
    mapped.unwrap_or(PG_AUTHID)
}

/// The names in that file, in the order of the roles' making.
pub fn superusers(file: &[u8]) -> Vec<String> {
    let mut found: Vec<(u32, String)> = file.chunks_exact(PAGE).flat_map(on_page).collect();
    // Of a role that was changed there are several versions, the newest behind the others.
    found.sort_by_key(|(oid, _)| *oid);
    found.dedup();
    found.into_iter().map(|(_, name)| name).collect()
}

const PAGE: usize = 8192;
const PAGE_HEADER: usize = 24;
const NAME: usize = 64;

fn on_page(page: &[u8]) -> Vec<(u32, String)> {
    let lower = page.get(12..14).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    let pointers = page.get(PAGE_HEADER..lower).unwrap_or_default().chunks_exact(4);
    pointers.filter_map(|pointer| role(page, number(pointer, 0)?)).collect()
}

fn role(page: &[u8], pointer: u32) -> Option<(u32, String)> {
    const NORMAL: u32 = 1;
    let (offset, flags, length) = ((pointer & 0x7fff) as usize, (pointer >> 15) & 3, (pointer >> 17) as usize);
    let tuple = page.get(offset..offset + length).filter(|_| flags == NORMAL)?;
    let row = tuple.get(usize::from(*tuple.get(22)?)..)?;
    let (name, rest) = row.get(4..)?.split_at_checked(NAME)?;
    // rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin
    let may_all = *rest.first()? == 1 && *rest.get(4)? == 1;
    let name = name.split(|byte| *byte == 0).next().and_then(|name| String::from_utf8(name.to_vec()).ok())?;
    (may_all && !name.is_empty()).then_some((number(row, 0)?, name))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(roles: &[(u32, &str, [u8; 5])]) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        let mut end = PAGE;
        for (index, (oid, name, rights)) in roles.iter().enumerate() {
            let mut tuple = vec![0; 24];
            tuple[22] = 24;
            tuple.extend(oid.to_le_bytes());
            let mut text = [0; NAME];
            text[..name.len()].copy_from_slice(name.as_bytes());
            tuple.extend(text);
            tuple.extend(rights);
            end -= tuple.len();
            page[end..end + tuple.len()].copy_from_slice(&tuple);
            let pointer = end as u32 | 1 << 15 | (tuple.len() as u32) << 17;
            page[PAGE_HEADER + index * 4..][..4].copy_from_slice(&pointer.to_le_bytes());
        }
        page[12..14].copy_from_slice(&((PAGE_HEADER + roles.len() * 4) as u16).to_le_bytes());
        page
    }

    #[test]
    fn those_who_may_all_are_found_and_noise_is_not() {
        let all = [1, 1, 1, 1, 1];
        let roles = [
            (16400, "boss", all),
            (10, "demo", all),
            (3373, "pg_monitor", [0, 1, 0, 0, 0]),
            (16401, "x", [1, 1, 1, 1, 0]),
        ];
        assert_eq!(superusers(&page(&roles)), ["demo", "boss"]);
        assert_eq!(superusers(&vec![0xff; PAGE * 2]), [""; 0]);
        assert_eq!(superusers(&page(&roles)[..PAGE - 1]), [""; 0]);
    }

    #[test]
    fn the_file_is_where_the_map_says() {
        let map: Vec<u8> = [0x592717u32, 2, 1262, 1262, 1260, 16500].iter().flat_map(|n| n.to_le_bytes()).collect();
        assert_eq!((file(&map), file(&[])), (16500, 1260));
    }
}
