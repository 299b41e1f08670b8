/* tokenizer.c: the tokenizer against recorded token ids, against hand-derived splits and merges, against a naive merge
 * loop on random vocabularies, and on texts of arbitrary bytes, which must come back exactly. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../suite.h"
#include "gguf_writer.h"
#include "scratch.h"
#include "tokenizer.h"
#include "tokenizer_split.h"

static char error[512];

/* A file of the test data. */
static char *data_path(const char *name)
{
    char *path;
    const char *folder = getenv("DOUBLEP_TEST_DATA");
    ck_assert_msg(folder != NULL, "DOUBLEP_TEST_DATA is not set");
    ck_assert_int_ge(asprintf(&path, "%s/%s", folder, name), 0);
    return path;
}

static tokenizer *open_model(void)
{
    char *path = data_path("needle-12m.q8_0.gguf");
    gguf_file *file = gguf_open(path, error, sizeof error);
    ck_assert_msg(file != NULL, "%s", error);
    tokenizer *t = tokenizer_create(file, error, sizeof error);
    ck_assert_msg(t != NULL, "%s", error);
    gguf_close(file);
    free(path);
    return t;
}

/* ---- The committed model ---- */

START_TEST(recorded_ids)
{
    tokenizer *t = open_model();
    char *path = data_path("tokenizer_golden.json");
    json_error_t why;
    json_t *golden = json_load_file(path, 0, &why), *entry;
    size_t i, checked = 0;
    ck_assert_msg(golden != NULL, "%s", why.text);
    json_array_foreach(golden, i, entry) {
        const json_t *text = json_object_get(entry, "text"), *tokens = json_object_get(entry, "tokens");
        tokenizer_ids ids = {0};
        ck_assert(tokenizer_encode(t, json_string_value(text), json_string_length(text), true, &ids, error,
                                   sizeof error));
        ck_assert_uint_eq(ids.count, json_array_size(tokens));
        for (size_t n = 0; n < ids.count; n++)
            ck_assert_int_eq(ids.ids[n], json_integer_value(json_array_get(tokens, n)));
        checked += ids.count;
        tokenizer_ids_free(&ids);
    }
    ck_assert_uint_gt(checked, 500);
    ck_assert_int_eq(tokenizer_vocab_size(t), 4096);
    ck_assert(tokenizer_bos(t) == 0 && tokenizer_eos(t) == 1 && tokenizer_eot(t) == -1 && tokenizer_add_bos(t));
    ck_assert(tokenizer_is_control(t, 0) && tokenizer_is_control(t, 1) && !tokenizer_is_control(t, 2));
    json_decref(golden);
    free(path);
    tokenizer_free(t);
}
END_TEST

static void check_round_trip(const tokenizer *t, const char *text, size_t length, bool parse_special)
{
    tokenizer_ids ids = {0};
    ck_assert_msg(tokenizer_encode(t, text, length, parse_special, &ids, error, sizeof error), "%s", error);
    size_t at = 0;
    bool same = true; /* one assertion in all: each writes to a pipe */
    for (size_t i = 0; i < ids.count && same; i++) {
        size_t n;
        const char *piece = tokenizer_decode(t, ids.ids[i], &n);
        same = piece && n > 0 && n <= length - at && memcmp(piece, text + at, n) == 0;
        at += n;
    }
    ck_assert(same && at == length);
    tokenizer_ids_free(&ids);
}

START_TEST(any_bytes_come_back)
{
    tokenizer *t = open_model();
    uint64_t seed = 12;
    enum { LONG = 1 << 20 };
    char *text = malloc(LONG);
    for (int round = 0; round < 2000; round++) {
        static const char *const parts[] = {" ", "  ", "\n", "\xc3\xa9", "\xe4\xb8\xad", "\xf0\x9f\x99\x82", "\xff",
                                            "\xc3", "\xe4\xb8", "\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80", "7",
                                            "it's", "<|bos|>", "<|eos|", "\xc2\xa0", "\xc2\x85"};
        size_t n = 0;
        const uint32_t n_parts = random_u32(&seed) % 60;
        for (uint32_t i = 0; i < n_parts; i++) {
            if (round % 2) {
                text[n++] = (char)random_u32(&seed);
            } else {
                const char *part = parts[random_u32(&seed) % (sizeof parts / sizeof parts[0])];
                memcpy(text + n, part, strlen(part));
                n += strlen(part);
            }
        }
        check_round_trip(t, text, n, round % 3 == 0);
    }
    check_round_trip(t, "", 0, true);
    check_round_trip(t, "\0\0a\0", 4, true);
    memset(text, 'a', LONG);
    check_round_trip(t, text, LONG, true);
    memset(text, ' ', LONG);
    check_round_trip(t, text, LONG, true);
    memset(text, 0x80, LONG);
    check_round_trip(t, text, LONG, true);
    for (size_t i = 0; i < LONG; i++) text[i] = (char)('a' + random_u32(&seed) % 26);
    check_round_trip(t, text, LONG, true);
    free(text);

    size_t n = 5;
    ck_assert_ptr_null(tokenizer_decode(t, -1, &n));
    ck_assert_uint_eq(n, 0);
    ck_assert_ptr_null(tokenizer_decode(t, 4096, &n));
    ck_assert(!tokenizer_is_control(t, -1) && !tokenizer_is_control(t, 4096));
    tokenizer_free(t);
}
END_TEST

/* ---- Splits ---- */

static bool append(void *user, const char *text, size_t length)
{
    bytes *b = user;
    if (b->n) bytes_put(b, "|", 1);
    bytes_put(b, text, length);
    return true;
}

/* Expected: pre-tokens with | between them (no text here has one of its own). */
static const struct {
    const char *pre, *text, *expected;
} splits[] = {
    {"gpt-2", "Hello world", "Hello| world"},
    {"gpt-2", "it's we'LL they'd", "it|'s| we|'|LL| they|'d"},
    {"gpt-2", "in 2024, 12345", "in| 2024|,| 12345"},
    {"gpt-2", "a   b", "a|  | b"},
    {"gpt-2", "a  \n\n b  ", "a|  \n\n| b|  "},
    {"gpt-2", "x=1;y", "x|=|1|;|y"},
    {"gpt-2", "a\xc2\xa0\xc2\xa0" "b", "a|\xc2\xa0|\xc2\xa0|b"},
    {"gpt-2", "\xc3\xa9t\xc3\xa9 \xe4\xb8\xad\xe6\x96\x87!", "\xc3\xa9t\xc3\xa9| \xe4\xb8\xad\xe6\x96\x87|!"},
    {"gpt-2", "\xc2\xbd \xe2\x85\xa0 x\xcc\x81", "\xc2\xbd| \xe2\x85\xa0| x|\xcc\x81"}, /* a half, Roman one, an accent */
    {"gpt-2", "a\xff\xfe z\xc3", "a|\xff\xfe| z|\xc3"},
    {"gpt-2", "a\xe1\xa0\x8e" "b", "a|\xe1\xa0\x8e|b"}, /* U+180E is no space any more */
    {"smollm", "in 2024, 12", "in| |2|0|2|4|,| |1|2"},
    {"smollm", "a   5", "a|   |5"},
    {"smollm", "a   b", "a|  | b"},
    {"smollm", "5's 'll", "5|'s| '|ll"},
    {"smollm", "x\xc2\xb2 \xd9\xa3", "x|\xc2\xb2| |\xd9\xa3"},
    {"llama-bpe", "Hello world", "Hello| world"},
    {"llama-bpe", "it's we'LL I'D", "it|'s| we|'LL| I|'D"},
    {"llama-bpe", "1234567 12", "123|456|7| |12"},
    {"llama-bpe", "a.b\tc _d", "a|.b|\tc| _|d"},
    {"llama-bpe", "wait!!\n\nnext", "wait|!!\n\n|next"},
    {"llama-bpe", "a  \n\n b", "a|  \n\n| b"},
    {"llama-bpe", "a   b   ", "a|  | b|   "},
    {"llama-bpe", "if (x) {\r\n  y", "if| (|x|)| {\r\n| | y"},
    {"llama-bpe", "\xff" "ab\xff", "\xff|ab|\xff"},
    {"llama-v3", "12345", "123|45"},
};

START_TEST(splits_by_hand)
{
    const char *pre = splits[_i].pre;
    tokenizer_splitter *splitter =
        tokenizer_splitter_create((gguf_string){pre, strlen(pre)}, error, sizeof error);
    ck_assert_msg(splitter != NULL, "%s", error);
    bytes pieces = {0};
    ck_assert(tokenizer_split(splitter, splits[_i].text, strlen(splits[_i].text), append, &pieces, error,
                              sizeof error));
    bytes_put(&pieces, "", 1);
    ck_assert_str_eq((const char *)pieces.data, splits[_i].expected);
    bytes_free(&pieces);
    tokenizer_splitter_free(splitter);
}
END_TEST

/* ---- Vocabularies of our own ---- */

/* How byte-level vocabularies spell a byte: GPT-2's table, written out from its definition. */
static size_t spell(unsigned byte, char *dst)
{
    unsigned character = byte, shifted = 0;
    for (unsigned b = 0; b <= byte; b++) {
        const bool kept = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte && !kept) character = 256 + shifted;
        shifted += !kept;
    }
    if (character < 128) {
        dst[0] = (char)character;
        return 1;
    }
    dst[0] = (char)(0xc0 | character >> 6);
    dst[1] = (char)(0x80 | (character & 63));
    return 2;
}

enum { MAX_TOKENS = 600 };

/* Tokens 0 .. 255 are the bytes; others follow. */
typedef struct vocabulary {
    char texts[MAX_TOKENS][64];
    int32_t types[MAX_TOKENS];
    size_t n;
    const char *merges[MAX_TOKENS];
    size_t n_merges;
    const char *pre;
    int32_t bos;
    bool missing_byte; /* leaves out byte 7 */
} vocabulary;

static void start(vocabulary *v, const char *pre)
{
    *v = (vocabulary){.n = 256, .pre = pre, .bos = -1};
    for (unsigned i = 0; i < 256; i++) {
        v->texts[i][spell(i, v->texts[i])] = 0;
        v->types[i] = 1;
    }
}

static int32_t add(vocabulary *v, const char *text, int32_t type)
{
    ck_assert_uint_lt(v->n, MAX_TOKENS);
    ck_assert_uint_lt(strlen(text), sizeof v->texts[0]);
    strcpy(v->texts[v->n], text);
    v->types[v->n] = type;
    return (int32_t)v->n++;
}

/* A merge of plain letters, and the token that it makes. */
static int32_t merge(vocabulary *v, const char *pair)
{
    char text[64];
    const char *space = strchr(pair, ' ');
    snprintf(text, sizeof text, "%.*s%s", (int)(space - pair), pair, space + 1);
    v->merges[v->n_merges++] = pair;
    return add(v, text, 1);
}

static tokenizer *create(const vocabulary *v)
{
    const char *path = scratch_path("vocabulary.gguf");
    gguf_string texts[MAX_TOKENS], merges[MAX_TOKENS];
    FILE *stream = fopen(path, "wb");
    gguf_writer *w = gguf_writer_create(stream);
    for (size_t i = 0; i < v->n; i++) texts[i] = (gguf_string){v->texts[i], strlen(v->texts[i])};
    if (v->missing_byte) texts[7] = (gguf_string){"[none]", 6};
    for (size_t i = 0; i < v->n_merges; i++) merges[i] = (gguf_string){v->merges[i], strlen(v->merges[i])};
    gguf_writer_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_writer_string(w, "tokenizer.ggml.pre", v->pre);
    gguf_writer_strings(w, "tokenizer.ggml.tokens", texts, v->n);
    gguf_writer_i32s(w, "tokenizer.ggml.token_type", v->types, v->n);
    gguf_writer_strings(w, "tokenizer.ggml.merges", merges, v->n_merges);
    if (v->bos >= 0) gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos);
    gguf_writer_header(w);
    ck_assert(gguf_writer_finish(w));
    gguf_writer_free(w);
    fclose(stream);
    gguf_file *file = gguf_open(path, error, sizeof error);
    ck_assert_msg(file != NULL, "%s", error);
    error[0] = 0;
    tokenizer *t = tokenizer_create(file, error, sizeof error);
    gguf_close(file);
    return t;
}

/* `expected` ends with -1. */
static void encodes(const tokenizer *t, const char *text, bool parse_special, const int32_t *expected)
{
    tokenizer_ids ids = {0};
    ck_assert_msg(tokenizer_encode(t, text, strlen(text), parse_special, &ids, error, sizeof error), "%s", error);
    size_t n = 0;
    while (expected[n] >= 0) n++;
    ck_assert_msg(ids.count == n, "%s: %zu tokens, must be %zu", text, ids.count, n);
    for (size_t i = 0; i < n; i++) ck_assert_msg(ids.ids[i] == expected[i], "%s: token %zu", text, i);
    tokenizer_ids_free(&ids);
}
#define IDS(...) ((const int32_t[]){__VA_ARGS__, -1})

START_TEST(merges_by_rank)
{
    vocabulary v;
    start(&v, "gpt-2");
    const int32_t bc = merge(&v, "b c"), ab = merge(&v, "a b"), abc = merge(&v, "a bc"), aa = merge(&v, "a a"),
                  aaaa = merge(&v, "aa aa");
    tokenizer *t = create(&v);
    ck_assert_msg(t != NULL, "%s", error);
    encodes(t, "ab", false, IDS(ab));
    encodes(t, "abc", false, IDS(abc));         /* b c goes first, then a bc */
    encodes(t, "abab", false, IDS(ab, ab));
    encodes(t, "aab", false, IDS('a', ab));     /* a b is ranked before a a */
    encodes(t, "aaa", false, IDS(aa, 'a'));     /* the leftmost of equal ranks */
    encodes(t, "aaaaaaa", false, IDS(aaaa, aa, 'a'));
    encodes(t, "bcabcx", false, IDS(bc, abc, 'x'));
    encodes(t, "a b", false, IDS('a', ' ', 'b')); /* no merge crosses a split */
    tokenizer_free(t);
}
END_TEST

START_TEST(whole_words_of_llama)
{
    vocabulary v;
    start(&v, "llama-bpe");
    const int32_t ab = merge(&v, "a b"), word = add(&v, "abx", 1), spaced = add(&v, "\xc4\xa0yx", 1);
    tokenizer *t = create(&v);
    ck_assert_msg(t != NULL, "%s", error);
    encodes(t, "abx", false, IDS(word)); /* no merge makes it, but it is in the vocabulary */
    encodes(t, "abxa", false, IDS(ab, 'x', 'a'));
    encodes(t, "abx yx", false, IDS(word, spaced));
    ck_assert(!tokenizer_add_bos(t)); /* no bos to add */
    tokenizer_free(t);
    v.bos = word;
    t = create(&v);
    ck_assert_ptr_nonnull(t);
    ck_assert(tokenizer_add_bos(t) && tokenizer_bos(t) == word);
    tokenizer_free(t);

    v.pre = "gpt-2";
    t = create(&v);
    ck_assert_ptr_nonnull(t);
    encodes(t, "abx", false, IDS(ab, 'x'));
    ck_assert(!tokenizer_add_bos(t));
    tokenizer_free(t);
}
END_TEST

START_TEST(special_tokens)
{
    vocabulary v;
    start(&v, "gpt-2");
    const int32_t control = add(&v, "<s>", 3), longer = add(&v, "<s>>", 3), user = add(&v, "[u]", 4),
                  end = add(&v, "<|im_end|>", 3), unused = add(&v, "[PAD \xc3\xa9 \xe4\xb8\xad]", 5);
    tokenizer *t = create(&v);
    ck_assert_msg(t != NULL, "%s", error);
    encodes(t, "<s>a<s>", true, IDS(control, 'a', control));
    encodes(t, "<s>>", true, IDS(longer));
    encodes(t, "<s>", false, IDS('<', 's', '>'));
    encodes(t, "a[u]b", false, IDS('a', user, 'b'));
    encodes(t, "<s<s>", true, IDS('<', 's', control));
    ck_assert_int_eq(tokenizer_eot(t), end);
    ck_assert(tokenizer_is_control(t, control) && !tokenizer_is_control(t, user));
    size_t n;
    ck_assert_mem_eq(tokenizer_decode(t, longer, &n), "<s>>", 4);
    ck_assert_mem_eq(tokenizer_decode(t, unused, &n), "[PAD \xc3\xa9 \xe4\xb8\xad]", 12);
    ck_assert_uint_eq(n, 12);
    tokenizer_free(t);
}
END_TEST

/* The definition of byte-pair encoding, in quadratic time: tokens as texts. */
static size_t merge_naively(const vocabulary *v, const char *text, char pieces[][64])
{
    size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) snprintf(pieces[i], 64, "%c", text[i]);
    for (;;) {
        size_t best = SIZE_MAX, best_at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            char pair[140];
            snprintf(pair, sizeof pair, "%.63s %.63s", pieces[i], pieces[i + 1]);
            for (size_t m = 0; m < v->n_merges && m < best; m++)
                if (strcmp(v->merges[m], pair) == 0) best = m, best_at = i;
        }
        if (best == SIZE_MAX) return n;
        char merged[64];
        snprintf(merged, sizeof merged, "%.31s%.31s", pieces[best_at], pieces[best_at + 1]);
        strcpy(pieces[best_at], merged);
        memmove(pieces[best_at + 1], pieces[best_at + 2], (n - best_at - 2) * sizeof pieces[0]);
        n--;
    }
}

START_TEST(merges_against_the_definition)
{
    uint64_t seed = (uint64_t)_i + 1;
    static vocabulary v;
    static char pairs[200][140], pieces[100][64];
    start(&v, "gpt-2");
    for (size_t m = 0; m < 200; m++) { /* merges of what is there: letters a to d, and earlier merges */
        const char *parts[2];
        for (int side = 0; side < 2; side++) {
            const size_t pick = random_u32(&seed) % (4 + v.n - 256);
            parts[side] = pick < 4 ? v.texts['a' + pick] : v.texts[256 + pick - 4];
        }
        snprintf(pairs[m], sizeof pairs[m], "%s %s", parts[0], parts[1]);
        bool known = strlen(pairs[m]) > 30;
        for (size_t k = 0; k < v.n_merges; k++) known = known || strcmp(v.merges[k], pairs[m]) == 0;
        char whole[140];
        snprintf(whole, sizeof whole, "%s%s", parts[0], parts[1]);
        bool is_token = false;
        for (size_t k = 256; k < v.n; k++) is_token = is_token || strcmp(v.texts[k], whole) == 0;
        if (known) continue;
        if (is_token) v.merges[v.n_merges++] = pairs[m]; /* a second way to the same token */
        else merge(&v, pairs[m]);
    }
    tokenizer *t = create(&v);
    ck_assert_msg(t != NULL, "%s", error);
    for (int round = 0; round < 50; round++) {
        char text[100];
        const size_t length = 1 + random_u32(&seed) % 50;
        for (size_t i = 0; i < length; i++) text[i] = (char)('a' + random_u32(&seed) % 4);
        text[length] = 0;
        const size_t n = merge_naively(&v, text, pieces);
        tokenizer_ids ids = {0};
        ck_assert(tokenizer_encode(t, text, length, false, &ids, error, sizeof error));
        ck_assert_uint_eq(ids.count, n);
        for (size_t i = 0; i < n; i++) ck_assert_str_eq(v.texts[ids.ids[i]], pieces[i]);
        tokenizer_ids_free(&ids);
    }
    tokenizer_free(t);
}
END_TEST

START_TEST(faulty_vocabularies)
{
    static const char *const merges[] = {"a", "", " ", "a ", " b", "a b", "a \xe4\xb8\xad", "ab c"};
    vocabulary v;
    for (size_t i = 0; i < sizeof merges / sizeof merges[0]; i++) {
        start(&v, "gpt-2");
        v.merges[v.n_merges++] = merges[i];
        ck_assert_ptr_null(create(&v));
        ck_assert_ptr_nonnull(strstr(error, "merge 0"));
    }
    start(&v, "qwen2");
    ck_assert_ptr_null(create(&v));
    ck_assert_ptr_nonnull(strstr(error, "'qwen2' is not supported"));
    start(&v, "gpt-2");
    v.bos = 256;
    ck_assert_ptr_null(create(&v));
    ck_assert_ptr_nonnull(strstr(error, "bos_token_id"));

    start(&v, "gpt-2");
    v.missing_byte = true;
    tokenizer *t = create(&v);
    ck_assert_msg(t != NULL, "%s", error);
    tokenizer_ids ids = {0};
    ck_assert(tokenizer_encode(t, "abc", 3, true, &ids, error, sizeof error));
    ck_assert(!tokenizer_encode(t, "x\7y", 3, true, &ids, error, sizeof error));
    ck_assert_ptr_nonnull(strstr(error, "0x07"));
    ck_assert_uint_eq(ids.count, 3);
    tokenizer_ids_free(&ids);
    tokenizer_free(t);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer");
    TCase *tcase = tcase_create("texts");
    tcase_add_checked_fixture(tcase, scratch_create, scratch_remove);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, recorded_ids);
    tcase_add_test(tcase, any_bytes_come_back);
    tcase_add_loop_test(tcase, splits_by_hand, 0, sizeof splits / sizeof splits[0]);
    tcase_add_test(tcase, merges_by_rank);
    tcase_add_test(tcase, whole_words_of_llama);
    tcase_add_test(tcase, special_tokens);
    tcase_add_loop_test(tcase, merges_against_the_definition, 0, 10);
    tcase_add_test(tcase, faulty_vocabularies);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
