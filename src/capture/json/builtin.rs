//! The types every PostgreSQL from 14 to 18 has, by the OIDs that `pg_type.dat` fixes.

use super::Kind;

/// The kind of a built-in type. `None` for any other, and for what no column can have.
pub fn builtin(oid: u32) -> Option<Kind> {
    if let Some(kind) = scalar(oid) {
        return Some(kind);
    }
    let index = ARRAYS.binary_search_by_key(&oid, |(array, _element)| *array).ok()?;
    let (_array, element) = ARRAYS.get(index)?;
    let delimiter = if *element == BOX { b';' } else { b',' };
    Some(Kind::Array { element: Box::new(scalar(*element)?), delimiter })
}

const BOX: u32 = 603;

fn scalar(oid: u32) -> Option<Kind> {
    let range = |bound| Some(Kind::Range(Box::new(bound)));
    let multirange = |bound| Some(Kind::Multirange(Box::new(bound)));
    match oid {
        // bool
        16 => Some(Kind::Bool),
        // int2, int4, oid, xid, cid
        21 | 23 | 26 | 28 | 29 => Some(Kind::Integer),
        // int8, xid8
        20 | 5069 => Some(Kind::BigInteger),
        // float4, float8
        700 | 701 => Some(Kind::Float),
        // bytea
        17 => Some(Kind::Bytes),
        // json, jsonb
        114 | 3802 => Some(Kind::Document),
        // date
        1082 => Some(Kind::Date),
        // timestamp, timestamptz
        1114 | 1184 => Some(Kind::Timestamp),
        // int2vector, oidvector
        22 | 30 => Some(Kind::Vector),
        // int4range, int8range, numrange, tsrange, tstzrange, daterange
        3904 => range(Kind::Integer),
        3926 => range(Kind::BigInteger),
        3906 => range(Kind::Text),
        3908 | 3910 => range(Kind::Timestamp),
        3912 => range(Kind::Date),
        // their multiranges, in the same order
        4451 => multirange(Kind::Integer),
        4536 => multirange(Kind::BigInteger),
        4532 => multirange(Kind::Text),
        4533 | 4534 => multirange(Kind::Timestamp),
        4535 => multirange(Kind::Date),
        // numeric; char, name, text, bpchar, varchar, cstring, xml, uuid
        1700 | 18 | 19 | 25 | 1042 | 1043 | 2275 | 142 | 2950
        // time, timetz, interval, money
        | 1083 | 1266 | 1186 | 790
        // point, lseg, path, box, polygon, line, circle
        | 600 | 601 | 602 | BOX | 604 | 628 | 718
        // inet, cidr, macaddr, macaddr8
        | 869 | 650 | 829 | 774
        // bit, varbit, tsvector, tsquery, gtsvector, jsonpath
        | 1560 | 1562 | 3614 | 3615 | 3642 | 4072
        // regproc, regprocedure, regoper, regoperator, regclass, regtype
        | 24 | 2202 | 2203 | 2204 | 2205 | 2206
        // regconfig, regdictionary, regnamespace, regrole, regcollation
        | 3734 | 3769 | 4089 | 4096 | 4191
        // tid, pg_lsn, pg_snapshot, txid_snapshot, refcursor, aclitem
        | 27 | 3220 | 5038 | 2970 | 1790 | 1033
        // pg_node_tree, pg_ndistinct, pg_dependencies, pg_mcv_list
        | 194 | 3361 | 3402 | 5017
        // pg_brin_bloom_summary, pg_brin_minmax_multi_summary
        | 4600 | 4601 => Some(Kind::Text),
        _ => None,
    }
}

/// Array type and element type, ordered by the first.
#[rustfmt::skip]
const ARRAYS: [(u32, u32); 77] = [
    (143, 142), (199, 114), (271, 5069), (629, 628), (651, 650), (719, 718), (775, 774), (791, 790),
    (1000, 16), (1001, 17), (1002, 18), (1003, 19), (1005, 21), (1006, 22), (1007, 23), (1008, 24),
    (1009, 25), (1010, 27), (1011, 28), (1012, 29), (1013, 30), (1014, 1042), (1015, 1043), (1016, 20),
    (1017, 600), (1018, 601), (1019, 602), (1020, BOX), (1021, 700), (1022, 701), (1027, 604), (1028, 26),
    (1034, 1033), (1040, 829), (1041, 869), (1115, 1114), (1182, 1082), (1183, 1083), (1185, 1184),
    (1187, 1186), (1231, 1700), (1263, 2275), (1270, 1266), (1561, 1560), (1563, 1562), (2201, 1790),
    (2207, 2202), (2208, 2203), (2209, 2204), (2210, 2205), (2211, 2206), (2949, 2970), (2951, 2950),
    (3221, 3220), (3643, 3614), (3644, 3642), (3645, 3615), (3735, 3734), (3770, 3769), (3807, 3802),
    (3905, 3904), (3907, 3906), (3909, 3908), (3911, 3910), (3913, 3912), (3927, 3926), (4073, 4072),
    (4090, 4089), (4097, 4096), (4192, 4191), (5039, 5038), (6150, 4451), (6151, 4532), (6152, 4533),
    (6153, 4534), (6155, 4535), (6157, 4536),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_in_order_and_their_elements_known() {
        assert!(ARRAYS.is_sorted_by_key(|(array, _element)| array));
        for (array, _element) in ARRAYS {
            assert!(builtin(array).is_some(), "{array}");
        }
    }
}
