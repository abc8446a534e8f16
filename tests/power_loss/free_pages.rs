//! The pages of a database file that are free: <https://www.sqlite.org/fileformat2.html#the_freelist>.

/// The same image with nothing in the leaves of its list of free pages.
pub(crate) fn blank(mut image: Vec<u8>) -> Vec<u8> {
    let page_size = match image.get(16..18) {
        Some([0, 1]) => 65_536,
        Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => return image,
    };
    if page_size < 512 {
        return image;
    }
    let number = |image: &[u8], at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    };
    let mut trunk = number(&image, 32).unwrap_or(0);
    // A list that does not end is damaged.
    for _ in 0..image.len() / page_size {
        let Some(at) = trunk.checked_sub(1).map(|trunk| trunk * page_size) else {
            break;
        };
        let leaves = number(&image, at + 4).unwrap_or(0).min(page_size / 4);
        for leaf in (0..leaves)
            .filter_map(|leaf| number(&image, at + 8 + leaf * 4))
            .collect::<Vec<_>>()
        {
            let start = leaf.saturating_sub(1) * page_size;
            if let Some(page) = image.get_mut(start..start + page_size) {
                page.fill(0);
            }
        }
        trunk = number(&image, at).unwrap_or(0);
    }
    image
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn free_pages_are_blank_and_the_others_are_not() {
        let mut connection = Connection::open_in_memory().unwrap();
        let sql = "PRAGMA page_size = 512; CREATE TABLE a(x); CREATE TABLE b(x); \
            INSERT INTO a VALUES(zeroblob(200000)); INSERT INTO b VALUES(zeroblob(200000)); UPDATE b SET x = hex(x); DROP TABLE a";
        connection.execute_batch(sql).unwrap();
        let image = connection.serialize("main").unwrap().to_vec();
        let free: u32 = connection
            .query_row("PRAGMA freelist_count", [], |row| row.get(0))
            .unwrap();
        let blanked = blank(image.clone());
        let pages = |image: &[u8]| image.chunks(512).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let changed = pages(&image)
            .iter()
            .zip(&pages(&blanked))
            .filter(|(was, is)| was != is)
            .count();
        assert!(changed > 100 && changed < free as usize, "{changed} of {free}");
        connection
            .deserialize_read_exact("main", &blanked[..], blanked.len(), false)
            .unwrap();
        let found: String = connection
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found, "ok");
        let b: u32 = connection
            .query_row("SELECT length(x) FROM b WHERE x = hex(zeroblob(200000))", [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(b, 400_000);
    }
}
