/* convert.c: `doublep convert` on tiny random models in both layouts: the file read back holds the values that went in,
 * within the type; q and k of Hugging Face's layout rotate as they did; what is faulty is named and leaves nothing. */
#include "../suite.h"
#include "convert.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "convert_config.h"
#include "gguf.h"
#include "scratch.h"
#include "tokenizer.h"

enum { WIDTH = 64, LAYERS = 2, HEADS = 4, KV_HEADS = 2, HEAD_DIM = 32, FFN = 96, VOCAB = 300 };

static char error[512];

/* ---- A model folder ---- */

typedef struct tensor {
    char name[80];
    uint64_t rows, columns; /* rows is 0 for a vector */
    float *values;          /* as the file's type holds them */
} tensor;

typedef struct model {
    bool hugging_face;
    quant_type type;
    tensor tensors[40];
    size_t n;
    uint64_t seed;
} model;

static void add(model *m, uint64_t rows, uint64_t columns, const char *format, int layer)
{
    tensor *t = &m->tensors[m->n++];
    char name[80];
    const char *number = strchr(format, '#');
    if (number) snprintf(name, sizeof name, "%.*s%d%s", (int)(number - format), format, layer, number + 1);
    else snprintf(name, sizeof name, "%s", format);
    strcpy(t->name, name);
    t->rows = rows;
    t->columns = columns;
    const size_t n = (rows ? rows : 1) * columns;
    t->values = malloc(n * sizeof *t->values);
    ck_assert_ptr_nonnull(t->values);
    for (size_t i = 0; i < n; i++) t->values[i] = random_normal(&m->seed);
}

static void make_model(model *m, bool hugging_face, quant_type type)
{
    static const char *const names[2][12] = {
        {"emb.weight", "norm", "blocks.#.attn_norm", "blocks.#.ffn_norm", "blocks.#.q.weight", "blocks.#.k.weight",
         "blocks.#.v.weight", "blocks.#.o.weight", "blocks.#.gate.weight", "blocks.#.up.weight",
         "blocks.#.down.weight", NULL},
        {"model.embed_tokens.weight", "model.norm.weight", "model.layers.#.input_layernorm.weight",
         "model.layers.#.post_attention_layernorm.weight", "model.layers.#.self_attn.q_proj.weight",
         "model.layers.#.self_attn.k_proj.weight", "model.layers.#.self_attn.v_proj.weight",
         "model.layers.#.self_attn.o_proj.weight", "model.layers.#.mlp.gate_proj.weight",
         "model.layers.#.mlp.up_proj.weight", "model.layers.#.mlp.down_proj.weight", "lm_head.weight"}};
    const char *const *name = names[hugging_face];
    const uint64_t q = HEADS * HEAD_DIM, kv = KV_HEADS * HEAD_DIM;
    *m = (model){.hugging_face = hugging_face, .type = type, .seed = 77};
    add(m, VOCAB, WIDTH, name[0], 0);
    add(m, 0, WIDTH, name[1], 0);
    for (int i = 0; i < LAYERS; i++) {
        add(m, 0, WIDTH, name[2], i);
        add(m, 0, WIDTH, name[3], i);
        add(m, q, WIDTH, name[4], i);
        add(m, kv, WIDTH, name[5], i);
        add(m, kv, WIDTH, name[6], i);
        add(m, WIDTH, q, name[7], i);
        add(m, FFN, WIDTH, name[8], i);
        add(m, FFN, WIDTH, name[9], i);
        add(m, WIDTH, FFN, name[10], i);
    }
    if (name[11]) add(m, VOCAB, WIDTH, name[11], 0);
}

static void free_model(model *m)
{
    for (size_t i = 0; i < m->n; i++) free(m->tensors[i].values);
}

/* Tensors first .. first + n - 1 as a safetensors file; m's values become what the type holds. */
static void write_safetensors(model *m, size_t first, size_t n, const char *path)
{
    static const struct {
        quant_type type;
        const char *name;
    } dtypes[] = {{QUANT_F32, "F32"}, {QUANT_F16, "F16"}, {QUANT_BF16, "BF16"}};
    bytes header = {0}, data = {0}, file = {0};
    char entry[300];
    for (size_t i = first; i < first + n; i++) {
        tensor *t = &m->tensors[i];
        const char *dtype = NULL;
        for (size_t d = 0; d < 3; d++)
            if (dtypes[d].type == m->type) dtype = dtypes[d].name;
        const size_t count = (t->rows ? t->rows : 1) * t->columns, start = data.n;
        unsigned char *raw = malloc(count * 4);
        ck_assert(quant_from_f32(m->type, t->values, count, raw));
        quant_to_f32(m->type, raw, count, t->values);
        bytes_put(&data, raw, count * quant_get_layout(m->type)->block_bytes);
        free(raw);
        char shape[60];
        if (t->rows) snprintf(shape, sizeof shape, "[%d,%d]", (int)t->rows, (int)t->columns);
        else snprintf(shape, sizeof shape, "[%d]", (int)t->columns);
        snprintf(entry, sizeof entry, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                 i > first ? "," : "{\"__metadata__\":{\"format\":\"pt\"},", t->name, dtype, shape, start, data.n);
        bytes_put(&header, entry, strlen(entry));
    }
    bytes_put(&header, "}", 1);
    bytes_u64(&file, header.n);
    bytes_put(&file, header.data, header.n);
    bytes_put(&file, data.data, data.n);
    scratch_write(path, file.data, file.n);
    bytes_free(&header);
    bytes_free(&data);
    bytes_free(&file);
}

static void write_text(const char *name, const char *text)
{
    scratch_write(scratch_path(name), text, strlen(text));
}

/* 256 bytes, two merges, two special tokens in front of a gap up to VOCAB. */
static void write_tokenizer(bool hugging_face)
{
    bytes b = {0};
    char entry[64];
    const char *head = "{\"added_tokens\":[{\"id\":258,\"content\":\"<|bos|>\",\"special\":true},"
                       "{\"id\":259,\"content\":\"<|eos|>\",\"special\":true}],\"normalizer\":null,";
    const char *digits = "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
                         "\"individual_digits\":true},{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]},";
    const char *plain = "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
                        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
                        "{\"id\":\"<|bos|>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]},";
    bytes_put(&b, head, strlen(head));
    bytes_put(&b, hugging_face ? plain : digits, strlen(hugging_face ? plain : digits));
    const char *start = "\"model\":{\"type\":\"BPE\",\"vocab\":{";
    bytes_put(&b, start, strlen(start));
    unsigned shifted = 256;
    for (unsigned byte = 0; byte < 256; byte++) {
        const bool kept = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        snprintf(entry, sizeof entry, "\"\\u%04x\":%u,", kept ? byte : shifted++, byte);
        bytes_put(&b, entry, strlen(entry));
    }
    const char *old_form = "\"ab\":256,\"abc\":257},\"merges\":[\"a b\",\"ab c\"]}}",
               *new_form = "\"ab\":256,\"abc\":257},\"merges\":[[\"a\",\"b\"],[\"ab\",\"c\"]]}}";
    bytes_put(&b, hugging_face ? old_form : new_form, strlen(hugging_face ? old_form : new_form));
    scratch_write(scratch_path("tokenizer.json"), b.data, b.n);
    bytes_free(&b);
}

static const char short_config[] = "{\"vocab\":300,\"d\":64,\"layers\":2,\"heads\":4,\"kv\":2,\"dh\":32,\"ff\":96,"
                                   "\"theta\":500000.0,\"ctx\":2048,\"eps\":1e-05}";
static const char hf_config[] =
    "{\"model_type\":\"llama\",\"vocab_size\":300,\"hidden_size\":64,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,\"intermediate_size\":96,"
    "\"max_position_embeddings\":2048,\"rms_norm_eps\":1e-06,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
    "\"tie_word_embeddings\":false,\"bos_token_id\":258,\"eos_token_id\":[259,258],"
    "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
    "\"original_max_position_embeddings\":1024}}";

/* The whole folder: one safetensors file, or two with an index. */
static void write_folder(model *m)
{
    write_tokenizer(m->hugging_face);
    if (!m->hugging_face) {
        write_text("config.json", short_config);
        write_safetensors(m, 0, m->n, scratch_path("model.safetensors"));
        return;
    }
    write_text("config.json", hf_config);
    write_safetensors(m, 0, 5, scratch_path("first.safetensors"));
    write_safetensors(m, 5, m->n - 5, scratch_path("second.safetensors"));
    write_text("unrelated.safetensors", "not named by the index");
    write_text("model.safetensors.index.json",
               "{\"weight_map\":{\"x\":\"first.safetensors\",\"y\":\"second.safetensors\"}}");
}

/* Runs the command; its messages are in `error`. */
static int convert(const char *type)
{
    const char *log = scratch_path("log"), *folder = scratch_path(""), *out = scratch_path("out.gguf");
    char *arguments[] = {"convert", (char *)folder, (char *)out, "--type", (char *)type, "--name", "tiny", NULL};
    fflush(stderr);
    const int saved = dup(STDERR_FILENO);
    ck_assert(saved >= 0 && freopen(log, "w", stderr) != NULL);
    const int status = cmd_convert(7, arguments);
    fflush(stderr);
    dup2(saved, STDERR_FILENO);
    close(saved);
    size_t n;
    char *text = scratch_read(log, &n);
    snprintf(error, sizeof error, "%s", text);
    free(text);
    unlink(log);
    return status;
}

/* ---- Tests ---- */

static const tensor *find(const model *m, const char *part, int layer)
{
    char number[16];
    snprintf(number, sizeof number, ".%d.", layer);
    for (size_t i = 0; i < m->n; i++)
        if (strstr(m->tensors[i].name, part) && (layer < 0 || strstr(m->tensors[i].name, number)))
            return &m->tensors[i];
    ck_abort_msg("no tensor %s", part);
    return NULL;
}

/* Largest error that the type allows for a row's element. */
static double bound(quant_type type, const float *row, size_t n, size_t i)
{
    double largest = 0;
    for (size_t j = i / 32 * 32; j < n && j < i / 32 * 32 + 32; j++) largest = fmax(largest, fabs((double)row[j]));
    if (type == QUANT_Q8_0) return largest / 127 * 0.501 + largest * 0x1p-11;
    if (type == QUANT_F16) return fabs((double)row[i]) * 0x1p-11 + 0x1p-25;
    return type == QUANT_BF16 ? fabs((double)row[i]) * 0x1p-8 : 0;
}

/* Row r of the GGUF tensor is row row_of(r) of the source. */
static void check_tensor(const gguf_file *file, const char *name, const tensor *source, quant_type type, bool permuted)
{
    const gguf_tensor *t = gguf_find_tensor(file, name);
    ck_assert_msg(t != NULL, "%s", name);
    ck_assert(t->dims[0] == source->columns && t->dims[1] == (source->rows ? source->rows : 1));
    ck_assert(t->type == (source->rows ? type : QUANT_F32));
    float row[256];
    bool same = true;
    for (uint64_t r = 0; r < t->dims[1]; r++) {
        const uint64_t head = r / HEAD_DIM * HEAD_DIM, in_head = r % HEAD_DIM;
        const uint64_t from = !permuted ? r : head + in_head / 2 + (in_head % 2 ? HEAD_DIM / 2 : 0);
        const float *wanted = source->values + from * source->columns;
        ck_assert(gguf_tensor_to_f32(t, r, 1, row));
        for (size_t i = 0; i < source->columns; i++)
            same = same && fabs((double)row[i] - (double)wanted[i]) <= bound(t->type, wanted, source->columns, i);
    }
    ck_assert_msg(same, "%s differs", name);
}

static const struct {
    const char *name;
    quant_type source, type;
} conversions[] = {{"f32", QUANT_F32, QUANT_F32},    {"f16", QUANT_F32, QUANT_F16},   {"bf16", QUANT_F32, QUANT_BF16},
                   {"q8_0", QUANT_BF16, QUANT_Q8_0}, {"f32", QUANT_BF16, QUANT_F32}, {"f16", QUANT_F16, QUANT_F16}};
enum { N_CONVERSIONS = sizeof conversions / sizeof conversions[0] };

START_TEST(values_come_back)
{
    static const char *const parts[2][9] = {
        {"attn_norm", "ffn_norm", ".q.", ".k.", ".v.", ".o.", "gate", "up", "down"},
        {"input_layernorm", "post_attention_layernorm", "q_proj", "k_proj", "v_proj", "o_proj", "gate", "up_proj",
         "down"}};
    static const char *const gguf_names[] = {"attn_norm", "ffn_norm",    "attn_q",   "attn_k", "attn_v",
                                             "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    const bool hf = _i >= N_CONVERSIONS;
    const quant_type type = conversions[_i % N_CONVERSIONS].type;
    model m;
    make_model(&m, hf, conversions[_i % N_CONVERSIONS].source);
    write_folder(&m);
    const size_t files = scratch_count();
    ck_assert_msg(convert(conversions[_i % N_CONVERSIONS].name) == 0, "%s", error);
    ck_assert_uint_eq(scratch_count(), files + 1);
    gguf_file *file = gguf_open(scratch_path("out.gguf"), error, sizeof error);
    ck_assert_msg(file != NULL, "%s", error);

    check_tensor(file, "token_embd.weight", find(&m, "emb", -1), type, false);
    check_tensor(file, "output_norm.weight", &m.tensors[1], type, false);
    for (int layer = 0; layer < LAYERS; layer++) {
        for (size_t p = 0; p < 9; p++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", layer, gguf_names[p]);
            check_tensor(file, name, find(&m, parts[hf][p], layer), type, hf && (p == 2 || p == 3));
        }
    }
    if (hf) check_tensor(file, "output.weight", find(&m, "lm_head", -1), type, false);
    ck_assert_uint_eq(gguf_n_tensors(file), hf ? 22 : 20); /* with rope_freqs */

    uint64_t number;
    double base;
    gguf_string string;
    ck_assert(gguf_get_u64(file, "llama.block_count", LAYERS, LAYERS, &number, error, sizeof error));
    ck_assert(gguf_get_u64(file, "llama.attention.key_length", HEAD_DIM, HEAD_DIM, &number, error, sizeof error));
    ck_assert(gguf_get_u64(file, "llama.feed_forward_length", FFN, FFN, &number, error, sizeof error));
    ck_assert(gguf_get_f64(file, "llama.rope.freq_base", 0, 1e9, &base, error, sizeof error));
    ck_assert(base == (hf ? 10000 : 500000));
    ck_assert(gguf_get_string(file, "general.name", &string, error, sizeof error));
    ck_assert(string.length == 4 && memcmp(string.data, "tiny", 4) == 0);
    tokenizer *t = tokenizer_create(file, error, sizeof error);
    ck_assert_msg(t != NULL, "%s", error);
    tokenizer_ids ids = {0};
    ck_assert(tokenizer_encode(t, "<|bos|>xabc12", 13, true, &ids, error, sizeof error));
    const int32_t wanted[] = {258, 'x', 257, '1', '2'};
    ck_assert(ids.count == 5 && memcmp(ids.ids, wanted, sizeof wanted) == 0);
    ck_assert(tokenizer_bos(t) == 258 && tokenizer_eos(t) == 259 && tokenizer_add_bos(t));
    ck_assert_int_eq(tokenizer_vocab_size(t), VOCAB);
    tokenizer_ids_free(&ids);
    tokenizer_free(t);
    gguf_close(file);
    free_model(&m);
}
END_TEST

/* Element i of a head turns with i + n / 2 in Hugging Face's layout, 2 i with 2 i + 1 in GGUF's. */
static void rotate(double *head, double position, bool interleaved)
{
    for (int i = 0; i < HEAD_DIM / 2; i++) {
        const double angle = position * pow(10000, -2.0 * i / HEAD_DIM);
        double *x = &head[interleaved ? 2 * i : i], *y = &head[interleaved ? 2 * i + 1 : i + HEAD_DIM / 2];
        const double old_x = *x;
        *x = old_x * cos(angle) - *y * sin(angle);
        *y = old_x * sin(angle) + *y * cos(angle);
    }
}

static void project(const float *rows, const double *input, double *head)
{
    for (int r = 0; r < HEAD_DIM; r++) {
        head[r] = 0;
        for (int c = 0; c < WIDTH; c++) head[r] += (double)rows[r * WIDTH + c] * input[c];
    }
}

START_TEST(rotation_is_kept)
{
    model m;
    make_model(&m, true, QUANT_F32);
    write_folder(&m);
    ck_assert_msg(convert("f32") == 0, "%s", error);
    gguf_file *file = gguf_open(scratch_path("out.gguf"), error, sizeof error);
    ck_assert_msg(file != NULL, "%s", error);
    double x[WIDTH], y[WIDTH];
    for (int i = 0; i < WIDTH; i++) x[i] = random_normal(&m.seed), y[i] = random_normal(&m.seed);
    for (int head = 0; head < HEADS; head++) {
        const int kv_head = head / (HEADS / KV_HEADS);
        const float *q[2] = {find(&m, "q_proj", 1)->values + head * HEAD_DIM * WIDTH,
                             gguf_find_tensor(file, "blk.1.attn_q.weight")->data};
        const float *k[2] = {find(&m, "k_proj", 1)->values + kv_head * HEAD_DIM * WIDTH,
                             gguf_find_tensor(file, "blk.1.attn_k.weight")->data};
        q[1] += head * HEAD_DIM * WIDTH;
        k[1] += kv_head * HEAD_DIM * WIDTH;
        double logit[2] = {0, 0};
        for (int layout = 0; layout < 2; layout++) {
            double query[HEAD_DIM], a_key[HEAD_DIM];
            project(q[layout], x, query);
            project(k[layout], y, a_key);
            rotate(query, 1234, layout == 1);
            rotate(a_key, 321, layout == 1);
            for (int i = 0; i < HEAD_DIM; i++) logit[layout] += query[i] * a_key[i];
        }
        ck_assert_msg(fabs(logit[0] - logit[1]) < 1e-9 * (1 + fabs(logit[0])), "%g and %g", logit[0], logit[1]);
    }

    /* Stretching: a pair that turns more than 4 times in 1024 tokens keeps its speed, one that turns less than once is
     * 8 times slower. */
    const gguf_tensor *factors = gguf_find_tensor(file, "rope_freqs.weight");
    ck_assert(factors && factors->dims[0] == HEAD_DIM / 2 && factors->type == QUANT_F32);
    for (int i = 0; i < HEAD_DIM / 2; i++) {
        const double turns = 1024 * pow(10000, -2.0 * i / HEAD_DIM) / (2 * M_PI);
        const double factor = ((const float *)factors->data)[i];
        if (turns > 4) ck_assert(factor == 1);
        else if (turns < 1) ck_assert(factor == 8);
        else ck_assert(fabs(1 / factor - ((4 - turns) / 3 / 8 + (turns - 1) / 3)) < 1e-6);
    }
    gguf_close(file);
    free_model(&m);
}
END_TEST

static void replace(const char *name, const char *from, const char *to)
{
    size_t n;
    char *text = scratch_read(scratch_path(name), &n), *found = memmem(text, n, from, strlen(from));
    ck_assert_msg(found != NULL, "%s has no %s", name, from);
    bytes b = {0};
    bytes_put(&b, text, (size_t)(found - text));
    bytes_put(&b, to, strlen(to));
    bytes_put(&b, found + strlen(from), n - (size_t)(found - text) - strlen(from));
    scratch_write(scratch_path(name), b.data, b.n);
    bytes_free(&b);
    free(text);
}

static const struct {
    const char *file, *from, *to, *word;
} faults[] = {
    {"config.json", "\"d\"", "\"e\"", "not the config of a Llama model"},
    {"config.json", "\"vocab\":300", "\"vocab\":-1", "\"vocab\""},
    {"config.json", "\"vocab\":300", "\"vocab\":301", "must be 301 x 64"},
    {"config.json", "\"vocab\":300", "\"vocab\":2000000000", "2^24 tokens"},
    {"config.json", "\"layers\":2", "\"layers\":3", "'blocks.2.attn_norm' is missing"},
    {"config.json", "\"layers\":2", "\"layers\":1", "is no part of a Llama model"},
    {"config.json", "\"kv\":2", "\"kv\":3", "impossible"},
    {"config.json", "{", "[", "config.json"},
    {"tokenizer.json", "\"BPE\"", "\"Unigram\"", "not of type BPE"},
    {"tokenizer.json", "\"individual_digits\":true", "\"individual_digits\":false", "pre_tokenizer"},
    {"tokenizer.json", "\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", "normalizer"},
    {"tokenizer.json", "\"abc\":257", "\"abc\":300", "outside the config's vocabulary"},
    {"tokenizer.json", "\"abc\":257", "\"abc\":256", "two tokens"},
    {"tokenizer.json", "[\"a\",\"b\"]", "[\"a\",1]", "merge 0"},
    {"model.safetensors", "\"dtype\":\"F32\"", "\"dtype\":\"I32\"", "dtype I32"},
    {"model.safetensors", "\"shape\":[300,64]", "\"shape\":[300,65]", "its shape needs"},
    {"model.safetensors", "\"shape\":[300,64]", "\"shape\":[300,-4]", "impossible shape"},
    {"model.safetensors", "\"data_offsets\":[0,", "\"data_offsets\":[9,", "model.safetensors"},
    {"model.safetensors", "blocks.0.q.weight", "blocks.0.q.weigth", "'blocks.0.q.weight' is missing"},
    {"model.safetensors", "\"blocks.1.ffn_norm\"", "\"blocks.0.ffn_norm\"", "duplicate"},
    {"model.safetensors", "{\"__meta", "{{_meta_", "not a JSON object"},
};

START_TEST(faults_are_named)
{
    model m;
    make_model(&m, false, QUANT_F32);
    write_folder(&m);
    replace(faults[_i].file, faults[_i].from, faults[_i].to);
    const size_t files = scratch_count();
    ck_assert_int_ne(convert("q8_0"), 0);
    ck_assert_msg(strstr(error, faults[_i].word) != NULL, "message: %s (wanted: %s)", error, faults[_i].word);
    ck_assert_uint_eq(scratch_count(), files);
    free_model(&m);
}
END_TEST

START_TEST(cut_and_impossible_weights)
{
    model m;
    make_model(&m, false, QUANT_F32);
    m.tensors[0].values[70] = NAN;
    write_folder(&m);
    size_t files = scratch_count(), n;
    ck_assert_int_ne(convert("q8_0"), 0);
    ck_assert_ptr_nonnull(strstr(error, "q8_0 cannot hold"));
    ck_assert_uint_eq(scratch_count(), files);
    ck_assert_int_eq(convert("bf16"), 0); /* which can */
    unlink(scratch_path("out.gguf"));

    const char *path = scratch_path("model.safetensors");
    char *whole = scratch_read(path, &n);
    uint64_t header;
    memcpy(&header, whole, sizeof header);
    const size_t cuts[] = {0, 7, 8, 100, 8 + (size_t)header, n - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        scratch_write(path, whole, cuts[i]);
        ck_assert_int_ne(convert("f16"), 0);
        ck_assert_ptr_nonnull(strstr(error, "model.safetensors"));
        ck_assert_uint_eq(scratch_count(), files);
    }
    memset(whole, 0xff, 8);
    scratch_write(path, whole, n);
    ck_assert_int_ne(convert("f16"), 0);
    ck_assert_ptr_nonnull(strstr(error, "not a safetensors file"));
    unlink(path);
    ck_assert_int_ne(convert("f16"), 0);
    ck_assert_ptr_nonnull(strstr(error, "holds no *.safetensors"));
    free(whole);
    free_model(&m);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("convert");
    TCase *tcase = tcase_create("folders");
    tcase_add_checked_fixture(tcase, scratch_create, scratch_remove);
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, values_come_back, 0, 2 * N_CONVERSIONS);
    tcase_add_test(tcase, rotation_is_kept);
    tcase_add_loop_test(tcase, faults_are_named, 0, sizeof faults / sizeof faults[0]);
    tcase_add_test(tcase, cut_and_impossible_weights);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
