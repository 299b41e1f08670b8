/* convert_tokenizer.c: reads tokenizer.json: the vocabulary, the merges, the added tokens, and which of the known
 * pre-tokenisers its pre_tokenizer is. */
#include "convert_tokenizer.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* Types of tokens, as GGUF numbers them. */
enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4, TOKEN_UNUSED = 5 };

/* Llama 3's expression, as its tokenizer.json has it. */
static const char llama_pattern[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                                    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

typedef struct vocabulary {
    const char *folder;
    const json_t *json;
    uint32_t size;
    gguf_string *texts; /* by id; data is NULL where there is none */
    int32_t *types;
    char (*fillers)[16]; /* texts of the ids that have none */
    char *error;
    size_t error_size;
} vocabulary;

__attribute__((format(printf, 2, 3))) static bool fail(const vocabulary *v, const char *format, ...)
{
    const int n = snprintf(v->error, v->error_size, "%s/tokenizer.json: ", v->folder);
    if (n < 0 || (size_t)n >= v->error_size) return false;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(v->error + n, v->error_size - (size_t)n, format, arguments);
    va_end(arguments);
    return false;
}

static bool is_type(const json_t *object, const char *type)
{
    const char *given = json_string_value(json_object_get(object, "type"));
    return given && strcmp(given, type) == 0;
}

static bool is_byte_level(const json_t *object, bool uses_regex)
{
    const json_t *regex = json_object_get(object, "use_regex"); /* true where it is missing */
    return is_type(object, "ByteLevel") && !json_is_true(json_object_get(object, "add_prefix_space")) &&
           (!regex || json_is_true(regex)) == uses_regex;
}

/* The name that GGUF has for the pre-tokeniser; NULL where it has none that we know. */
static const char *pre_tokenizer_name(const json_t *pre)
{
    if (is_byte_level(pre, true)) return "gpt-2";
    const json_t *list = json_object_get(pre, "pretokenizers");
    if (!is_type(pre, "Sequence") || json_array_size(list) != 2) return NULL;
    const json_t *first = json_array_get(list, 0), *second = json_array_get(list, 1);
    if (is_type(first, "Digits") && json_is_true(json_object_get(first, "individual_digits")) &&
        is_byte_level(second, true))
        return "smollm";
    const char *pattern = json_string_value(json_object_get(json_object_get(first, "pattern"), "Regex"));
    const char *behavior = json_string_value(json_object_get(first, "behavior"));
    if (is_type(first, "Split") && pattern && strcmp(pattern, llama_pattern) == 0 && behavior &&
        strcmp(behavior, "Isolated") == 0 && !json_is_true(json_object_get(first, "invert")) &&
        is_byte_level(second, false))
        return "llama-bpe";
    return NULL;
}

/* ---- Vocabulary ---- */

static bool set_token(const vocabulary *v, const json_t *id, const char *text, size_t length, int32_t type)
{
    const json_int_t number = json_integer_value(id);
    if (!json_is_integer(id) || number < 0 || number >= (json_int_t)v->size)
        return fail(v, "token '%.60s' has no id, or one outside the config's vocabulary of %u", text, v->size);
    gguf_string *slot = &v->texts[number];
    if (slot->data && (slot->length != length || memcmp(slot->data, text, length) != 0))
        return fail(v, "id %lld is that of two tokens, '%.60s' and '%.60s'", (long long)number, slot->data, text);
    *slot = (gguf_string){text, length};
    v->types[number] = type;
    return true;
}

static bool read_tokens(const vocabulary *v, const json_t *model)
{
    json_t *vocab = json_object_get(model, "vocab"), *id, *token;
    const char *text;
    size_t i;
    if (!json_is_object(vocab)) return fail(v, "\"vocab\" of the model is missing");
    json_object_foreach(vocab, text, id) {
        if (!set_token(v, id, text, strlen(text), TOKEN_NORMAL)) return false;
    }
    json_array_foreach(json_object_get(v->json, "added_tokens"), i, token) {
        const json_t *content = json_object_get(token, "content");
        const bool special = json_is_true(json_object_get(token, "special"));
        if (!json_is_string(content)) return fail(v, "added token %zu has no \"content\"", i);
        if (!set_token(v, json_object_get(token, "id"), json_string_value(content), json_string_length(content),
                       special ? TOKEN_CONTROL : TOKEN_USER_DEFINED))
            return false;
    }
    for (uint32_t n = 0; n < v->size; n++) {
        if (v->texts[n].data) continue;
        const int length = snprintf(v->fillers[n], sizeof v->fillers[n], "[PAD%u]", n);
        v->texts[n] = (gguf_string){v->fillers[n], (size_t)length};
        v->types[n] = TOKEN_UNUSED;
    }
    return true;
}

/* Merges are "left right", or (newer files) ["left", "right"]. Written as the former. */
static bool write_merges(const vocabulary *v, const json_t *model, gguf_writer *w)
{
    const json_t *merges = json_object_get(model, "merges");
    json_t *merge;
    size_t i, size = 0;
    char *bytes = NULL;
    if (!json_is_array(merges)) return fail(v, "\"merges\" of the model is missing");
    gguf_string *strings = calloc(json_array_size(merges) + 1, sizeof *strings);
    FILE *stream = open_memstream(&bytes, &size);
    bool ok = (strings && stream) || fail(v, "no memory for the merges");
    json_array_foreach(merges, i, merge) {
        if (!ok) break;
        const char *left = json_string_value(json_array_get(merge, 0)),
                   *right = json_string_value(json_array_get(merge, 1)), *whole = json_string_value(merge);
        if (left && right && json_array_size(merge) == 2) fprintf(stream, "%s %s", left, right);
        else if (whole) fputs(whole, stream);
        else ok = fail(v, "merge %zu is not a pair of strings", i);
        const long end = ftell(stream);
        if (ok && end < 0) ok = fail(v, "no memory for the merges");
        strings[i].length = (size_t)end; /* where it ends, until the text has its final place */
    }
    if (stream && fclose(stream) != 0 && ok) ok = fail(v, "no memory for the merges");
    if (ok) {
        const size_t n = json_array_size(merges);
        for (size_t at = 0, k = 0; k < n; k++) {
            const size_t end = strings[k].length;
            strings[k] = (gguf_string){bytes + at, end - at};
            at = end;
        }
        gguf_writer_strings(w, "tokenizer.ggml.merges", strings, n);
    }
    free(bytes);
    free(strings);
    return ok;
}

/* ---- Special tokens ---- */

/* The id of a control token by its text; -1 where there is none. */
static int64_t find_control(const vocabulary *v, const char *text)
{
    for (uint32_t i = 0; i < v->size; i++)
        if (v->types[i] == TOKEN_CONTROL && v->texts[i].length == strlen(text) &&
            memcmp(v->texts[i].data, text, strlen(text)) == 0)
            return i;
    return -1;
}

/* True where the post-processor, or one of a sequence of them, puts a special token in front. */
static bool starts_with_special(const json_t *post)
{
    if (is_type(post, "TemplateProcessing"))
        return json_object_get(json_array_get(json_object_get(post, "single"), 0), "SpecialToken") != NULL;
    json_t *part;
    size_t i;
    json_array_foreach(json_object_get(post, "processors"), i, part) {
        if (starts_with_special(part)) return true;
    }
    return false;
}

static bool write_keys(const vocabulary *v, const convert_config *config, const char *pre, gguf_writer *w)
{
    const int64_t bos = config->bos >= 0 ? config->bos : find_control(v, "<|bos|>");
    const int64_t eos = config->eos >= 0 ? config->eos : find_control(v, "<|eos|>");
    if (bos >= (int64_t)v->size || eos >= (int64_t)v->size)
        return fail(v, "bos or eos of the config is outside the vocabulary of %u", v->size);
    const bool add_bos = config->hugging_face ? starts_with_special(json_object_get(v->json, "post_processor")) : true;
    gguf_writer_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_writer_string(w, "tokenizer.ggml.pre", pre);
    gguf_writer_strings(w, "tokenizer.ggml.tokens", v->texts, v->size);
    gguf_writer_i32s(w, "tokenizer.ggml.token_type", v->types, v->size);
    if (bos >= 0) gguf_writer_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)bos);
    if (eos >= 0) gguf_writer_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)eos);
    gguf_writer_bool(w, "tokenizer.ggml.add_bos_token", add_bos && bos >= 0);
    return true;
}

static bool convert(const vocabulary *v, const convert_config *config, gguf_writer *w)
{
    const json_t *model = json_object_get(v->json, "model"), *normalizer = json_object_get(v->json, "normalizer");
    if (!is_type(model, "BPE")) return fail(v, "the model is not of type BPE");
    if (normalizer && !json_is_null(normalizer)) return fail(v, "a normalizer is not supported");
    const char *pre = pre_tokenizer_name(json_object_get(v->json, "pre_tokenizer"));
    if (!pre)
        return fail(v, "the pre_tokenizer is none of those that are supported: ByteLevel, Digits one by one before "
                       "ByteLevel, Llama 3's Split before ByteLevel");
    if (json_is_true(json_object_get(model, "ignore_merges")) && strcmp(pre, "llama-bpe") != 0)
        return fail(v, "\"ignore_merges\" with this pre_tokenizer is not supported");
    return read_tokens(v, model) && write_keys(v, config, pre, w) && write_merges(v, model, w);
}

bool convert_tokenizer(const char *folder, const convert_config *config, gguf_writer *w, char *error,
                       size_t error_size)
{
    json_t *json = convert_load_json(folder, "tokenizer.json", error, error_size);
    if (!json) return false;
    vocabulary v = {folder, json, config->vocab, NULL, NULL, NULL, error, error_size};
    v.texts = calloc(v.size, sizeof *v.texts);
    v.types = calloc(v.size, sizeof *v.types);
    v.fillers = calloc(v.size, sizeof *v.fillers);
    const bool ok = v.texts && v.types && v.fillers ? convert(&v, config, w)
                                                    : fail(&v, "no memory for a vocabulary of %u tokens", v.size);
    free(v.texts);
    free(v.types);
    free(v.fillers);
    json_decref(json);
    return ok;
}
