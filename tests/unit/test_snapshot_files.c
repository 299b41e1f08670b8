/* Snapshot files that are not what they should be: each is refused, with a reason, whatever of it is wrong. */
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kv/snapshot.h"
#include "scratch.h"
#include "unit.h"

enum { HEADS = 2, KV_HEADS = 2, DIM = 8, TOKENS = 700 };

typedef struct fixture {
    rng r;
    cache c;
    dp_runtime *rt;
    dp_sequence_config config;
    const char *path;
    char *file;
    size_t n;
} fixture;

static const char note[] = "what was said";

static fixture setup(void)
{
    fixture f = {.r = {89}, .path = scratch_path("snapshot")};
    f.c = cache_create(&f.r, TOKENS, KV_HEADS, DIM, DIM, DP_BF16);
    f.rt = runtime_with(1, DP_ISA_AUTO);
    f.config = sequence_config(&f.c, HEADS, DP_BF16);
    f.config.segment_tokens = 280; /* 18 clusters: the second panel has padding */
    dp_sequence *s;
    float q[HEADS * DIM];
    make_queries(&f.r, &f.c, 1, HEADS, q);
    ck_assert_int_eq(dp_sequence_create(f.rt, &f.config, &s), DP_OK);
    ck_assert_int_eq(dp_observe_queries(s, 0, 1, q), DP_OK);
    append(s, &f.c, 0, TOKENS, 350);
    append(s, &f.c, 0, 350, 350);
    ck_assert_int_eq(dp_sequence_save(s, f.path, note, sizeof note), DP_OK);
    dp_sequence_free(s);
    f.file = scratch_read(f.path, &f.n);
    return f;
}

static void teardown(fixture *f)
{
    ck_assert_uint_eq(scratch_count(), 1);
    runtime_end(f->rt);
    cache_free(&f->c);
    free(f->file);
}

static dp_status load_with(const fixture *f, const dp_load_options *options)
{
    dp_sequence *s;
    const dp_status status = dp_sequence_load(f->rt, f->path, options, &s);
    assert_quietly((s != NULL) == (status == DP_OK));
    dp_sequence_free(s);
    return status;
}

static dp_status load_bytes(const fixture *f, const void *bytes, size_t n)
{
    scratch_write(f->path, bytes, n);
    return load_with(f, NULL);
}

static void write_byte(const fixture *f, size_t at, char byte)
{
    const int file = open(f->path, O_WRONLY);
    assert_quietly(file >= 0 && pwrite(file, &byte, 1, (off_t)at) == 1 && close(file) == 0);
}

static void check_reason(const fixture *f, const char *reason)
{
    char text[256];
    dp_last_error(f->rt, text, sizeof text);
    ck_assert_msg(strncmp(text, "dp_sequence_load: ", 18) == 0 && strstr(text, reason), "\"%s\" has no \"%s\"", text,
                  reason);
}

static dp_snapshot_header *header_of(const fixture *f)
{
    return (dp_snapshot_header *)(void *)f->file;
}

static char *table_of(const fixture *f)
{
    return f->file + sizeof(dp_snapshot_header);
}

/* Makes the checksums of header and table right again, as somebody would who wants to do harm. */
static void seal(const fixture *f)
{
    dp_snapshot_header *const h = header_of(f);
    h->table_checksum = dp_snapshot_checksum(0, table_of(f), (size_t)h->table_bytes);
    h->checksum = dp_snapshot_checksum(0, h, offsetof(dp_snapshot_header, checksum));
}

START_TEST(every_byte_counts)
{
    fixture f = setup();
    ck_assert_int_eq(load_bytes(&f, f.file, f.n), DP_OK);
    size_t changed = 0;
    for (size_t i = 0; i < f.n;
         i += f.file[i] || i % 64 > 50 ? 1 : 13) { /* between the arrays are long rows of zeros */
        write_byte(&f, i, (char)(f.file[i] ^ (1 << i % 8)));
        const dp_status status = load_with(&f, NULL);
        if (status != DP_ERR_DAMAGED && status != DP_ERR_UNSUPPORTED) ck_abort_msg("byte %zu: status %d", i, status);
        assert_quietly(status == DP_ERR_DAMAGED || i < 16);
        write_byte(&f, i, f.file[i]);
        changed++;
    }
    ck_assert_uint_gt(changed, 10000);
    ck_assert_int_eq(load_with(&f, NULL), DP_OK);
    teardown(&f);
}
END_TEST

START_TEST(every_length_counts)
{
    fixture f = setup();
    char *const longer = calloc(2, f.n);
    memcpy(longer, f.file, f.n);
    for (size_t n = 0; n < 2 * f.n; n += n < 1000 ? 1 : 509) {
        const dp_status status = load_bytes(&f, longer, n);
        if (n != f.n) assert_quietly(status == DP_ERR_DAMAGED);
    }
    ck_assert_int_eq(load_bytes(&f, longer, f.n - 1), DP_ERR_DAMAGED);
    check_reason(&f, "bytes, not the");
    ck_assert_int_eq(load_bytes(&f, longer, f.n + 1), DP_ERR_DAMAGED);
    free(longer);
    teardown(&f);
}
END_TEST

START_TEST(foreign_files)
{
    fixture f = setup();
    dp_snapshot_header *const h = header_of(&f);
    ck_assert_int_eq(load_bytes(&f, "", 0), DP_ERR_DAMAGED);
    check_reason(&f, "is no snapshot");
    ck_assert_int_eq(load_bytes(&f, "GGUF, say", 9), DP_ERR_DAMAGED);
    check_reason(&f, "is no snapshot");
    h->byte_order = __builtin_bswap32(h->byte_order);
    ck_assert_int_eq(load_bytes(&f, f.file, f.n), DP_ERR_UNSUPPORTED);
    check_reason(&f, "byte order");
    h->byte_order = __builtin_bswap32(h->byte_order);
    h->byte_order++; /* neither */
    seal(&f);
    ck_assert_int_eq(load_bytes(&f, f.file, f.n), DP_ERR_DAMAGED);
    h->byte_order--;
    h->version++;
    ck_assert_int_eq(load_bytes(&f, f.file, f.n), DP_ERR_UNSUPPORTED);
    char reason[64];
    snprintf(reason, sizeof reason, "has format version %d, this library knows those up to %d", DP_SNAPSHOT_VERSION + 1,
             DP_SNAPSHOT_VERSION);
    check_reason(&f, reason);
    h->version -= 2;
    seal(&f);
    ck_assert_int_eq(load_bytes(&f, f.file, f.n), DP_ERR_UNSUPPORTED);
    snprintf(reason, sizeof reason, "has format version %d", DP_SNAPSHOT_VERSION - 1);
    check_reason(&f, reason);
    h->version++;
    h->file_bytes++;
    seal(&f);
    ck_assert_int_eq(load_bytes(&f, f.file, f.n), DP_ERR_DAMAGED);
    check_reason(&f, "bytes, not the");
    h->file_bytes--;
    for (int i = 0; i < 2; i++) {
        *(uint32_t *)(void *)table_of(&f) += i ? -8u : 4u; /* struct_size of the settings */
        seal(&f);
        ck_assert_int_eq(load_bytes(&f, f.file, f.n), DP_ERR_UNSUPPORTED);
        check_reason(&f, "settings of another version");
    }

    dp_sequence *s;
    ck_assert_int_eq(remove(f.path), 0);
    ck_assert_int_eq(dp_sequence_load(f.rt, f.path, NULL, &s), DP_ERR_SYSTEM);
    check_reason(&f, "No such file");
    ck_assert_int_eq(dp_sequence_load(f.rt, "/", NULL, &s), DP_ERR_SYSTEM);
    check_reason(&f, "not a regular file");
    ck_assert_int_eq(mkfifo(f.path, 0600), 0); /* which nobody ever writes to */
    ck_assert_int_eq(dp_sequence_load(f.rt, f.path, NULL, &s), DP_ERR_SYSTEM);
    check_reason(&f, "not a regular file");
    ck_assert_int_eq(remove(f.path), 0);
    scratch_write(f.path, "", 0);
    teardown(&f);
}
END_TEST

/* Each number of the table, changed with checksums that are right: refused, or what it says is consistent and harmless.
 * Whatever is taken must be fit for use. */
START_TEST(hostile_tables)
{
    static const uint32_t values[] = {0, 1, 2, 7, 255, 4096, 1u << 20, UINT32_MAX};
    fixture f = setup();
    const size_t n_values = sizeof values / sizeof *values, words = (size_t)header_of(&f)->table_bytes / 4;
    int refused = 0;
    for (size_t i = 0; i < words * n_values; i++) {
        uint32_t *const word = (uint32_t *)(void *)table_of(&f) + i / n_values, was = *word;
        *word = values[i % n_values];
        seal(&f);
        scratch_write(f.path, f.file, f.n);
        dp_sequence *s;
        const dp_status status = dp_sequence_load(f.rt, f.path, NULL, &s);
        refused += status != DP_OK;
        if (s) {
            float q[HEADS * DIM] = {0}, out[HEADS * 512];
            if (dp_sequence_tokens(s, 0)) assert_quietly(dp_decode(s, 0, 1, q, NULL, out, NULL, NULL) == DP_OK);
            static const float rows[100 * 512];
            assert_quietly(dp_append(s, 0, 100, rows, 512, rows, 512) != DP_ERR_SYSTEM);
            dp_sequence_free(s);
        }
        *word = was;
    }
    ck_assert_int_gt(refused, 100);
    teardown(&f);
}
END_TEST

/* A fixture's first segment, in memory that can be written to. */
static dp_segment *writable_segment(fixture *f, dp_sequence **s)
{
    ck_assert_int_eq(dp_sequence_load(f->rt, f->path, &(dp_load_options){.struct_size = sizeof(dp_load_options)}, s),
                     DP_OK);
    return &(*s)->heads[0].segments[0];
}

/* Numbers of the index that point elsewhere or that no index has, with the right checksum: seen when everything is
 * verified. */
START_TEST(hostile_index)
{
    fixture f = setup();
    dp_sequence *s;
    dp_segment *const segment = writable_segment(&f, &s);
    const uint32_t padding = segment->n_panels * DP_PANEL - 1;
    ck_assert_uint_ge(padding, segment->n_clusters);
    const struct {
        void *place;
        size_t bytes;
        uint32_t value;
    } changes[] = {
        {&segment->offset[segment->n_clusters / 2], 4, 1u << 31},
        {&segment->offset[segment->n_clusters], 4, segment->n_tokens - 1},
        {&segment->token[5], 2, segment->token[6]},
        {&segment->size[padding], 2, 0x3f80},  /* 1: a padding cluster with a size */
        {&segment->spread[padding], 2, 0x7fc0}, /* NaN */
        {&segment->size[1], 2, 0x7149},        /* 1e30 */
        {&segment->size[1], 2, 0x7f80},        /* Inf */
        {&segment->size[1], 2, 0xbf80},        /* -1 */
        {&segment->spread[1], 2, 0xbf80},
        {&segment->limit[1], 2, 0xbf80},
        {&segment->limit[1], 2, 0x7f80},
        {&segment->limit[1], 2, 0x7fc0},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        uint32_t was;
        memcpy(&was, changes[i].place, changes[i].bytes);
        memcpy(changes[i].place, &changes[i].value, changes[i].bytes);
        ck_assert_int_eq(dp_sequence_save(s, f.path, NULL, 0), DP_OK);
        ck_assert_msg(load_with(&f, NULL) == DP_ERR_DAMAGED, "change %zu was taken", i);
        check_reason(&f, "array of index (layer 0, KV head 0) has numbers out of range");
        memcpy(changes[i].place, &was, changes[i].bytes);
    }
    segment->spread[1] = 0x7fc0; /* NaN: as a key that is not a number makes it */
    ck_assert_int_eq(dp_sequence_save(s, f.path, NULL, 0), DP_OK);
    ck_assert_int_eq(load_with(&f, NULL), DP_OK);
    dp_sequence_free(s);
    teardown(&f);
}
END_TEST

/* Nobody has verified this one. A cluster of endless size and spread, beside two whose masses are large: whatever is infinite
 * of it, steps come to an end. */
START_TEST(infinite_masses)
{
    fixture f = setup();
    dp_sequence *s;
    const dp_segment *const segment = writable_segment(&f, &s);
    for (uint32_t i = 0; i < 2 * 256; i++) {
        segment->size[0] = i % 2 ? 0x6fa1 : 0x7f7f; /* 1e29, 3.4e38 */
        segment->limit[0] = 0xbf80;                 /* -1 */
        segment->spread[0] = (uint16_t)(0x3f80 + i / 2 * 16); /* 1 to 1e9 */
        for (uint32_t c = 1; c < 3; c++) {
            segment->size[c] = 0x4e6e; /* 1e9 */
            segment->limit[c] = 0;
            segment->spread[c] = 0x4974; /* 1e6 */
        }
        for (int refine = DP_REFINE_BUDGET; refine <= DP_REFINE_TOP_P; refine++) {
            dp_attention_params params;
            dp_attention_params_init(&params);
            params.min_context = 0;
            params.refine = (dp_refine)refine;
            float q[HEADS * DIM], out[HEADS * DIM];
            for (int d = 0; d < HEADS * DIM; d++) q[d] = 1;
            assert_quietly(dp_decode(s, 0, 1, q, &params, out, NULL, NULL) == DP_OK);
        }
    }
    dp_sequence_free(s);
    teardown(&f);
}
END_TEST

/* Trusted files: what is mapped is not read, all else is checked. */
START_TEST(without_verifying)
{
    fixture f = setup();
    dp_load_options options;
    dp_load_options_init(&options);
    options.verify = 0;
    f.file[f.n - 3000] ^= 1; /* in the last segment */
    ck_assert_int_eq(load_bytes(&f, f.file, f.n), DP_ERR_DAMAGED);
    check_reason(&f, "(layer 0, KV head 1) is damaged: its checksum does not match");
    ck_assert_int_eq(load_with(&f, &options), DP_OK);
    options.map = 0; /* read anyway, so checked */
    ck_assert_int_eq(load_with(&f, &options), DP_ERR_DAMAGED);
    options.map = 1;
    for (size_t i = 0; i < 4000; i++) { /* tables, note, rows that wait */
        write_byte(&f, i, (char)(f.file[i] ^ 1));
        assert_quietly(load_with(&f, &options) != DP_OK);
        write_byte(&f, i, f.file[i]);
    }
    ck_assert_int_eq(load_bytes(&f, f.file, f.n - 1), DP_ERR_DAMAGED);
    ck_assert_int_eq(load_with(&f, &options), DP_ERR_DAMAGED);
    teardown(&f);
}
END_TEST

START_TEST(other_settings)
{
    fixture f = setup();
    dp_load_options options;
    dp_load_options_init(&options);
    dp_sequence_config wanted = f.config;
    options.config = &wanted;
    ck_assert_int_eq(load_with(&f, &options), DP_OK);
    wanted.key_dim = 16;
    ck_assert_int_eq(load_with(&f, &options), DP_ERR_INVALID);
    check_reason(&f, "key_dim is 8 in the file, not 16");
    wanted = f.config;
    wanted.outlier_share = 0.25f;
    ck_assert_int_eq(load_with(&f, &options), DP_ERR_INVALID);
    check_reason(&f, "outlier_share is 0.125 in the file, not 0.25");
    teardown(&f);
}
END_TEST

START_TEST(notes)
{
    fixture f = setup();
    dp_load_options options;
    dp_load_options_init(&options);
    char text[sizeof note + 2];
    size_t n = 0;
    options.note = text;
    options.note_bytes = &n;
    for (options.note_size = 0; options.note_size <= sizeof text; options.note_size++) {
        memset(text, '*', sizeof text);
        ck_assert_int_eq(load_with(&f, &options), DP_OK);
        ck_assert_uint_eq(n, sizeof note);
        const size_t given = options.note_size < n ? options.note_size : n;
        ck_assert(memcmp(text, note, given) == 0);
        if (given < sizeof text) ck_assert_int_eq(text[given], '*');
    }
    teardown(&f);
}
END_TEST

START_TEST(wrong_arguments)
{
    fixture f = setup();
    dp_sequence *s, *loaded;
    dp_load_options options;
    ck_assert_int_eq(dp_sequence_load(f.rt, f.path, NULL, &s), DP_OK);
    ck_assert_int_eq(dp_sequence_save(NULL, f.path, NULL, 0), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_save(s, NULL, NULL, 0), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_save(s, "", NULL, 0), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_save(s, f.path, NULL, 1), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_save(s, f.path, note, SIZE_MAX), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_save(s, "/nowhere/at/all", NULL, 0), DP_ERR_SYSTEM);
    char text[256];
    ck_assert_ptr_nonnull(strstr(dp_last_error(f.rt, text, sizeof text), "/nowhere/at/all: No such file"));
    ck_assert_int_eq(dp_sequence_save(s, "/tmp/", NULL, 0), DP_ERR_SYSTEM); /* a folder */
    ck_assert_int_eq(dp_sequence_load(NULL, f.path, NULL, &loaded), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_load(f.rt, NULL, NULL, &loaded), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_load(f.rt, "", NULL, &loaded), DP_ERR_INVALID);
    ck_assert_int_eq(dp_sequence_load(f.rt, f.path, NULL, NULL), DP_ERR_INVALID);
    dp_load_options_init(&options);
    options.note_size = 1;
    ck_assert_int_eq(load_with(&f, &options), DP_ERR_INVALID);
    options.note_size = 0;
    options.struct_size++;
    ck_assert_int_eq(load_with(&f, &options), DP_ERR_INVALID);
    dp_sequence_free(s);
    f.config.borrowed = 1;
    ck_assert_int_eq(dp_sequence_create(f.rt, &f.config, &s), DP_OK);
    ck_assert_int_eq(dp_sequence_save(s, f.path, NULL, 0), DP_ERR_INVALID);
    dp_sequence_free(s);
    teardown(&f);
}
END_TEST

int main(void)
{
    Suite *const suite = suite_create("snapshot files");
    TCase *const tc = tcase_create("snapshot files");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, scratch_create, scratch_remove);
    tcase_add_test(tc, every_byte_counts);
    tcase_add_test(tc, every_length_counts);
    tcase_add_test(tc, foreign_files);
    tcase_add_test(tc, hostile_tables);
    tcase_add_test(tc, hostile_index);
    tcase_add_test(tc, infinite_masses);
    tcase_add_test(tc, without_verifying);
    tcase_add_test(tc, other_settings);
    tcase_add_test(tc, notes);
    tcase_add_test(tc, wrong_arguments);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
