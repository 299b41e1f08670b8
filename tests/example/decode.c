#include <doublep/doublep.h>
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    enum { TOKENS = 4096, HEADS = 32, KV_HEADS = 8, DIM = 128 };
    static float k[TOKENS * KV_HEADS * DIM], v[TOKENS * KV_HEADS * DIM], q[HEADS * DIM], out[HEADS * DIM];
    for (int i = 0; i < TOKENS * KV_HEADS * DIM; i++) k[i] = v[i] = (float)rand() / (float)RAND_MAX; /* yours */
    for (int i = 0; i < HEADS * DIM; i++) q[i] = (float)rand() / (float)RAND_MAX;

    dp_runtime *runtime;
    if (dp_runtime_create(NULL, &runtime)) return 1;
    dp_sequence_config config;
    dp_sequence_config_init(&config);
    config.n_query_heads = HEADS, config.n_kv_heads = KV_HEADS, config.key_dim = config.value_dim = DIM;
    dp_sequence *sequence;
    dp_attention_stats stats;
    dp_attention_stats_init(&stats);
    if (dp_sequence_create(runtime, &config, &sequence) || dp_append(sequence, 0, TOKENS, k, 0, v, 0) ||
        dp_build_index(sequence, DP_ALL_LAYERS) || dp_decode(sequence, 0, 1, q, NULL, out, NULL, &stats)) {
        char why[256];
        return fprintf(stderr, "%s\n", dp_last_error(runtime, why, sizeof why)), 1;
    }
    printf("read %.1f %% of the cache\n", 100.0 * (double)stats.bytes / (double)stats.bytes_dense);
    dp_sequence_free(sequence);
    dp_runtime_free(runtime);
}
