/* Any bytes as a snapshot whose checksums are right (crc32_z always gives 0 here, see meson.build): what loads can be used
 * and saved like any sequence, to the same file; what does not is refused in words. In a file the segments begin at 64 KiB, so
 * an input is a length in 2 bytes, so many bytes of the beginning, and then those from 64 KiB on; the file is as long as its
 * header says. */
#include "fuzz.h"
#include "kv/snapshot.h"
#include "saved.h"

static dp_runtime *rt;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    rt = small_runtime(64 << 20);
    return saved_open();
}

enum { PAGE = 1 << 16, MOST = 1 << 20 };
static char file[MOST];

static size_t expand(const uint8_t *data, size_t size)
{
    input in = {data, size};
    size_t first = input_byte(&in);
    first |= (size_t)input_byte(&in) << 8;
    if (first > in.size) first = in.size;
    size_t second = in.size - first;
    if (second > MOST - PAGE) second = MOST - PAGE;
    memset(file, 0, sizeof file);
    memcpy(file, in.data, first);
    memcpy(file + PAGE, in.data + first, second);
    uint64_t length;
    memcpy(&length, file + offsetof(dp_snapshot_header, file_bytes), sizeof length);
    return first < sizeof(dp_snapshot_header) || length > MOST ? first : (size_t)length;
}

/* Saved again, it is the same file: but for the gap behind the settings, which nobody reads. */
static void compare_saved(size_t size)
{
    const size_t settings = sizeof(dp_snapshot_header) + sizeof(dp_sequence_config);
    memset(file + settings, 0, (size_t)dp_snapshot_round(settings, DP_SNAPSHOT_ALIGN) - settings);
    FILE *const saved = fopen(saved_path, "rb");
    char part[4096];
    size_t at = 0;
    for (size_t n; (n = fread(part, 1, sizeof part, saved)); at += n)
        MUST(n <= size - at && memcmp(part, file + at, n) == 0);
    MUST(at == size);
    fclose(saved);
}

static void use(dp_sequence *s)
{
    dp_sequence_config c;
    dp_sequence_config_init(&c);
    MUST(dp_sequence_get_config(s, &c) == DP_OK);
    const size_t n_q = (size_t)c.n_query_heads * c.key_dim, n_out = (size_t)c.n_query_heads * c.value_dim;
    const size_t n_k = (size_t)c.n_kv_heads * c.key_dim, n_v = (size_t)c.n_kv_heads * c.value_dim;
    if (c.n_layers > 8 || n_q > 4096 || n_out > 4096) return;
    float *const q = calloc(n_q, sizeof *q), *const out = calloc(n_out, sizeof *out);
    float *const k = calloc(100 * n_k, sizeof *k), *const v = calloc(100 * n_v, sizeof *v);
    dp_attention_params params;
    dp_attention_params_init(&params);
    params.min_context = 0;
    q[0] = 1;
    dp_sequence *fork;
    MUST(dp_sequence_fork(s, &fork) == DP_OK);
    for (uint32_t l = 0; l < c.n_layers; l++) {
        const uint64_t n = dp_sequence_tokens(s, l);
        if (n) {
            MUST(dp_decode(s, l, 1, q, &params, out, NULL, NULL) == DP_OK);
            MUST(dp_decode(s, l, 1, q, NULL, out, NULL, NULL) == DP_OK);
            MUST(dp_sequence_read(s, l, 0, n - 1, 1, k, v) == DP_OK);
        }
        const dp_status status = dp_append(s, l, 100, k, 0, v, 0);
        MUST(status == DP_OK || status == DP_ERR_NO_MEMORY || n > UINT32_MAX - 100);
        MUST(dp_sequence_truncate(fork, l, n / 2) == DP_OK);
    }
    MUST(dp_build_index(s, DP_ALL_LAYERS) == DP_OK);
    dp_sequence_free(fork);
    free(q), free(out), free(k), free(v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const size_t length = expand(data, size);
    const uint64_t before = runtime_bytes(rt);
    int descriptor;
    const char *const input_path = memory_file(file, length, &descriptor);
    dp_load_options options;
    dp_load_options_init(&options);
    for (options.map = 0; options.map < 2; options.map++) {
        dp_sequence *s;
        const dp_status status = dp_sequence_load(rt, input_path, &options, &s);
        MUST(!s == (status != DP_OK));
        MUST(status != DP_ERR_INVALID);
        if (!s) continue;
        if (options.map) {
            size_t note_bytes;
            options.note_bytes = &note_bytes;
            dp_sequence_free(s);
            MUST(dp_sequence_load(rt, input_path, &options, &s) == DP_OK);
            options.note_bytes = NULL;
            if (!note_bytes) {
                MUST(dp_sequence_save(s, saved_path, NULL, 0) == DP_OK);
                compare_saved(length);
            }
        }
        use(s);
        dp_sequence_free(s);
    }
    close(descriptor);
    MUST(runtime_bytes(rt) == before);
    return 0;
}
