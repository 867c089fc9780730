//! RFC 7541, appendix C.

use super::{decode, entries, octets, shown};
use crate::h2::hpack::{Decoder, integer};

#[test]
fn c1_integers() {
    for (bits, value, hex) in [(5, 10, "0a"), (5, 1337, "1f9a0a"), (8, 42, "2a")] {
        let mut out = Vec::new();
        integer::write(&mut out, 0, bits, value);
        assert_eq!(out, octets(hex));
        let mut input = &out[..];
        assert_eq!(integer::read(&mut input, bits), Ok(value));
        assert!(input.is_empty());
    }
}

#[test]
fn c2_each_form_of_a_field() {
    let cases = [
        (
            "C.2.1",
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            "custom-key: custom-header\n",
            "custom-key: custom-header\n",
        ),
        (
            "C.2.2",
            "040c 2f73 616d 706c 652f 7061 7468",
            ":path: /sample/path\n",
            "",
        ),
        (
            "C.2.3",
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            "password: secret\n",
            "",
        ),
        ("C.2.4", "82", ":method: GET\n", ""),
    ];
    for (section, block, fields, table) in cases {
        let mut decoder = Decoder::new(4096);
        let decoded = decode(&mut decoder, &octets(block)).expect(section);
        assert_eq!(shown(&decoded), fields, "{section}");
        let never = decoded.iter().any(|field| field.never_indexed);
        assert_eq!(never, section == "C.2.3");
        assert_eq!(shown(&entries(&mut decoder)), table, "{section}");
    }
}

/// One connection's blocks, and after each the list, the table and its size.
type Session = [(&'static str, &'static str, &'static str, usize); 3];

fn check(section: &str, first: &str, session: &Session) {
    let mut decoder = Decoder::new(4096);
    decode(&mut decoder, &octets(first)).expect(section);
    for (block, fields, table, size) in session {
        let decoded = decode(&mut decoder, &octets(block)).expect(section);
        assert_eq!(shown(&decoded), *fields, "{section}");
        let held = entries(&mut decoder);
        assert_eq!(shown(&held), *table, "{section}");
        assert_eq!(held.size(), *size, "{section}");
    }
}

const FIRST: &str = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\n";
const SECOND: &str =
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache\n";
const THIRD: &str = ":method: GET\n:scheme: https\n:path: /index.html\n\
                     :authority: www.example.com\ncustom-key: custom-value\n";
const TABLES: [&str; 3] = [
    ":authority: www.example.com\n",
    "cache-control: no-cache\n:authority: www.example.com\n",
    "custom-key: custom-value\ncache-control: no-cache\n:authority: www.example.com\n",
];

#[test]
fn c3_requests() {
    let blocks = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    check("C.3", "", &requests(blocks));
}

#[test]
fn c4_requests_with_huffman_coding() {
    let blocks = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    check("C.4", "", &requests(blocks));
}

fn requests([first, second, third]: [&'static str; 3]) -> Session {
    [
        (first, FIRST, TABLES[0], 57),
        (second, SECOND, TABLES[1], 110),
        (third, THIRD, TABLES[2], 164),
    ]
}

const FOUND: &str = ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
                     location: https://www.example.com\n";
const FOUND_TABLE: &str = "location: https://www.example.com\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
                           cache-control: private\n:status: 302\n";
const MOVED: &str = ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n\
                     location: https://www.example.com\n";
const MOVED_TABLE: &str = ":status: 307\nlocation: https://www.example.com\n\
                           date: Mon, 21 Oct 2013 20:13:21 GMT\ncache-control: private\n";
const GOOD: &str = ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\n\
                    location: https://www.example.com\ncontent-encoding: gzip\n\
                    set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\n";
const GOOD_TABLE: &str = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\n\
                          content-encoding: gzip\ndate: Mon, 21 Oct 2013 20:13:22 GMT\n";
/// The examples are of a table of 256 octets; this tells the decoder so.
const SHRINK: &str = "3fe1 01";

#[test]
fn c5_responses_with_eviction() {
    let blocks = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a
         3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04
         677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49
         553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
    ];
    check("C.5", SHRINK, &responses(blocks));
}

#[test]
fn c6_responses_with_huffman_coding() {
    let blocks = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e
         919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7
         821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed
         4ee5 b106 3d50 07",
    ];
    check("C.6", SHRINK, &responses(blocks));
}

fn responses([first, second, third]: [&'static str; 3]) -> Session {
    [
        (first, FOUND, FOUND_TABLE, 222),
        (second, MOVED, MOVED_TABLE, 222),
        (third, GOOD, GOOD_TABLE, 215),
    ]
}
