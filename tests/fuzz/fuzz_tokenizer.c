/* Any bytes as a text: its tokens are in the vocabulary and spell it; a prefix of it encodes, too. The vocabulary is that of
 * the committed model, DOUBLEP_TEST_DATA in the environment. */
#include "fuzz.h"
#include "tokenizer.h"

static tokenizer *t;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    char path[4096], error[256];
    const char *const folder = getenv("DOUBLEP_TEST_DATA");
    snprintf(path, sizeof path, "%s/needle-12m.q8_0.gguf", folder ? folder : "tests/data");
    gguf_file *const file = gguf_open(path, error, sizeof error);
    MUST(file != NULL);
    t = tokenizer_create(file, error, sizeof error);
    MUST(t != NULL);
    gguf_close(file);
    return 0;
}

static void round_trip(const char *text, size_t length, bool parse_special)
{
    tokenizer_ids ids = {0};
    char error[256];
    size_t at = 0;
    MUST(tokenizer_encode(t, text, length, parse_special, &ids, error, sizeof error));
    for (size_t i = 0; i < ids.count; i++) {
        size_t n;
        const char *const piece = tokenizer_decode(t, ids.ids[i], &n);
        MUST(piece && n && n <= length - at && memcmp(piece, text + at, n) == 0);
        MUST(parse_special || !tokenizer_is_control(t, ids.ids[i]));
        at += n;
    }
    MUST(at == length);
    tokenizer_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *const text = malloc(size + !size); /* its own block, so that reading beyond shows */
    memcpy(text, data, size);
    round_trip(text, size, false);
    round_trip(text, size, true);
    round_trip(text, size / 2, true);
    free(text);
    return 0;
}
