/* The native methods of io.edgemoe.Native. Each checks nothing that edgemoe.h checks, and throws what it refuses. */
#include <edgemoe.h>

#include <jni.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define N_STAT 13

/* A copy of a Java byte array with a NUL at its end; NULL for null, and when memory is out (an error is then pending). */
static char *text_of(JNIEnv *env, jbyteArray bytes, jsize *n_bytes) {
    if (!bytes) return NULL;
    jsize const n = (*env)->GetArrayLength(env, bytes);
    char *text = malloc((size_t)n + 1);
    if (!text) {
        jclass const error = (*env)->FindClass(env, "java/lang/OutOfMemoryError");
        if (error) (*env)->ThrowNew(env, error, "text");
        return NULL;
    }
    (*env)->GetByteArrayRegion(env, bytes, 0, n, (jbyte *)text);
    text[n] = 0;
    if (n_bytes) *n_bytes = n;
    return text;
}

static jbyteArray bytes_of(JNIEnv *env, const char *text, size_t n) {
    jbyteArray const bytes = (*env)->NewByteArray(env, (jsize)n);
    if (bytes) (*env)->SetByteArrayRegion(env, bytes, 0, (jsize)n, (const jbyte *)text);
    return bytes;
}

static void throw_status(JNIEnv *env, emoe_status status, const emoe_error *err, uint64_t smallest) {
    if ((*env)->ExceptionCheck(env)) return;
    jclass const type = (*env)->FindClass(env, "io/edgemoe/EdgeMoeException");
    if (!type) return;
    jmethodID const make = (*env)->GetMethodID(env, type, "<init>", "(I[BJ)V");
    if (!make) return;
    jbyteArray const message = bytes_of(env, err->message, strlen(err->message));
    if (!message) return;
    jthrowable const error = (jthrowable)(*env)->NewObject(env, type, make, (jint)status, message, (jlong)smallest);
    if (error) (*env)->Throw(env, error);
}

/* Texts of an array of byte arrays. */
struct texts {
    char **items;
    jsize n;
};

static void free_texts(struct texts *t) {
    for (jsize i = 0; t->items && i < t->n; i++) free(t->items[i]);
    free(t->items);
    t->items = NULL;
}

/* 0 when an error is pending. */
static int texts_of(JNIEnv *env, jobjectArray array, struct texts *t) {
    t->n = array ? (*env)->GetArrayLength(env, array) : 0;
    t->items = calloc((size_t)t->n + 1, sizeof *t->items);
    if (!t->items) {
        jclass const error = (*env)->FindClass(env, "java/lang/OutOfMemoryError");
        if (error) (*env)->ThrowNew(env, error, "texts");
        return 0;
    }
    for (jsize i = 0; i < t->n; i++) {
        jbyteArray const item = (jbyteArray)(*env)->GetObjectArrayElement(env, array, i);
        t->items[i] = text_of(env, item, NULL); /* null stays NULL: the library refuses it */
        if (item) (*env)->DeleteLocalRef(env, item);
        if ((*env)->ExceptionCheck(env)) return 0;
    }
    return 1;
}

static emoe_session *session_of(jlong handle) { return (emoe_session *)(intptr_t)handle; }

static emoe_sampler_params sampler_of(jfloat temp, jint top_k, jfloat top_p, jfloat min_p, jint seed) {
    return (emoe_sampler_params){.struct_size = sizeof(emoe_sampler_params),
                                 .seed = (uint32_t)seed,
                                 .temp = temp,
                                 .top_p = top_p,
                                 .min_p = min_p,
                                 .repeat_penalty = 1,
                                 .top_k = top_k};
}

/* What it points to is the caller's. */
static emoe_answer_params answer_of(const struct texts *stop, jint max_tokens, const emoe_sampler_params *sampler) {
    emoe_answer_params p = {.struct_size = sizeof p};
    p.max_tokens = (uint32_t)max_tokens;
    p.stop = (const char *const *)stop->items;
    p.n_stop = (uint32_t)stop->n;
    p.sampler = sampler;
    return p;
}

JNIEXPORT jlong JNICALL Java_io_edgemoe_Native_open(JNIEnv *env, jclass self, jbyteArray path, jbyteArray cache_dir,
                                                    jlong budget_bytes, jlong process_bytes, jint n_ctx,
                                                    jint n_threads) {
    (void)self;
    char *path_text = text_of(env, path, NULL), *cache_text = text_of(env, cache_dir, NULL);
    emoe_session *session = NULL;
    if (!(*env)->ExceptionCheck(env)) {
        emoe_setup setup = {.struct_size = sizeof setup};
        setup.memory = (uint64_t)budget_bytes;
        setup.process_bytes = (uint64_t)process_bytes;
        setup.n_ctx = (uint32_t)n_ctx;
        setup.n_threads = (uint32_t)n_threads;
        emoe_plan plan = {.struct_size = sizeof plan};
        emoe_error err = {{0}};
        emoe_status const status = emoe_session_open(path_text, cache_text, &setup, &session, &plan, &err);
        if (status != EMOE_OK) throw_status(env, status, &err, status == EMOE_ERR_MEMORY ? plan.smallest_bytes : 0);
    }
    free(path_text);
    free(cache_text);
    return (jlong)(intptr_t)session;
}

JNIEXPORT void JNICALL Java_io_edgemoe_Native_close(JNIEnv *env, jclass self, jlong session) {
    (void)env, (void)self;
    emoe_session_close(session_of(session));
}

JNIEXPORT void JNICALL Java_io_edgemoe_Native_chat(JNIEnv *env, jclass self, jlong session, jobjectArray roles,
                                                   jobjectArray contents, jbyteArray chat_template, jint max_tokens,
                                                   jfloat temp, jint top_k, jfloat top_p, jfloat min_p, jint seed,
                                                   jobjectArray stop) {
    (void)self;
    struct texts role = {0}, content = {0}, stops = {0};
    char *template_text = text_of(env, chat_template, NULL);
    emoe_message *messages = NULL;
    if (!(*env)->ExceptionCheck(env) && texts_of(env, roles, &role) && texts_of(env, contents, &content) &&
        texts_of(env, stop, &stops)) {
        uint32_t const n = (uint32_t)(role.n < content.n ? role.n : content.n);
        messages = calloc((size_t)n + 1, sizeof *messages);
        emoe_error err = {{0}};
        emoe_status status = EMOE_ERR_MEMORY;
        if (messages) {
            for (uint32_t i = 0; i < n; i++) messages[i] = (emoe_message){role.items[i], content.items[i]};
            emoe_sampler_params const sampler = sampler_of(temp, top_k, top_p, min_p, seed);
            emoe_answer_params const params = answer_of(&stops, max_tokens, &sampler);
            status = emoe_session_chat(session_of(session), messages, n, template_text, &params, &err);
        }
        if (status != EMOE_OK) throw_status(env, status, &err, 0);
    }
    free(messages);
    free(template_text);
    free_texts(&role);
    free_texts(&content);
    free_texts(&stops);
}

JNIEXPORT void JNICALL Java_io_edgemoe_Native_prompt(JNIEnv *env, jclass self, jlong session, jbyteArray text,
                                                     jint max_tokens, jfloat temp, jint top_k, jfloat top_p,
                                                     jfloat min_p, jint seed, jobjectArray stop) {
    (void)self;
    struct texts stops = {0};
    jsize n = 0;
    char *prompt = text_of(env, text, &n);
    if (!(*env)->ExceptionCheck(env) && texts_of(env, stop, &stops)) {
        emoe_sampler_params const sampler = sampler_of(temp, top_k, top_p, min_p, seed);
        emoe_answer_params const params = answer_of(&stops, max_tokens, &sampler);
        emoe_error err = {{0}};
        emoe_status const status = emoe_session_prompt(session_of(session), prompt, (uint64_t)n, &params, &err);
        if (status != EMOE_OK) throw_status(env, status, &err, 0);
    }
    free(prompt);
    free_texts(&stops);
}

JNIEXPORT jbyteArray JNICALL Java_io_edgemoe_Native_next(JNIEnv *env, jclass self, jlong session) {
    (void)self;
    const char *text = NULL;
    uint64_t n = 0;
    emoe_error err = {{0}};
    emoe_status const status = emoe_session_next(session_of(session), &text, &n, &err);
    if (status != EMOE_OK) throw_status(env, status, &err, 0);
    return status == EMOE_OK && text ? bytes_of(env, text, (size_t)n) : NULL;
}

JNIEXPORT jint JNICALL Java_io_edgemoe_Native_finish(JNIEnv *env, jclass self, jlong session) {
    (void)env, (void)self;
    return (jint)emoe_session_finish(session_of(session));
}

JNIEXPORT void JNICALL Java_io_edgemoe_Native_cancel(JNIEnv *env, jclass self, jlong session) {
    (void)env, (void)self;
    emoe_session_cancel(session_of(session));
}

JNIEXPORT void JNICALL Java_io_edgemoe_Native_setBudget(JNIEnv *env, jclass self, jlong session, jlong budget_bytes) {
    (void)self;
    emoe_error err = {{0}};
    emoe_status const status = emoe_session_set_budget(session_of(session), (uint64_t)budget_bytes, &err);
    if (status != EMOE_OK) throw_status(env, status, &err, 0);
}

JNIEXPORT void JNICALL Java_io_edgemoe_Native_memoryWarning(JNIEnv *env, jclass self, jlong session, jint level) {
    (void)self;
    emoe_error err = {{0}};
    emoe_status const status = emoe_session_memory_warning(session_of(session), (uint32_t)level, &err);
    if (status != EMOE_OK) throw_status(env, status, &err, 0);
}

JNIEXPORT jlongArray JNICALL Java_io_edgemoe_Native_stats(JNIEnv *env, jclass self, jlong session) {
    (void)self;
    emoe_error err = {{0}};
    emoe_stats s = {.struct_size = sizeof s};
    emoe_plan p = {.struct_size = sizeof p};
    emoe_status status = emoe_session_get_plan(session_of(session), &p, &err);
    if (status == EMOE_OK) status = emoe_engine_get_stats(emoe_session_engine(session_of(session)), &s, &err);
    if (status != EMOE_OK) {
        throw_status(env, status, &err, 0);
        return NULL;
    }
    /* In the order of STAT_* in Native.java. */
    jlong const values[N_STAT] = {(jlong)s.n_prefill,      (jlong)s.prefill_ns,  (jlong)s.n_decode,
                                  (jlong)s.decode_ns,      (jlong)s.n_hit,       (jlong)s.n_miss,
                                  (jlong)s.read_bytes,     (jlong)p.cache_bytes, (jlong)p.budget_bytes,
                                  (jlong)p.smallest_bytes, (jlong)p.n_slot,      (jlong)p.n_expert_total,
                                  (jlong)p.n_ctx};
    jlongArray const array = (*env)->NewLongArray(env, N_STAT);
    if (array) (*env)->SetLongArrayRegion(env, array, 0, N_STAT, values);
    return array;
}
