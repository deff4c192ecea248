// What a program can do wrong, from C: every call is answered with a code. Made with -fsanitize=address by ci/capi.
// With -DOFFENCE it hands in a length that its buffer does not have, which the sanitizer must find.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mu.h"

static int checks;

static void expect(int line, mu_result got, mu_result wanted) {
  checks++;
  if (got == wanted) return;
  fprintf(stderr, "line %d: %d (%s), not %d: %s\n", line, got, mu_strerror(got), wanted, mu_last_error());
  exit(1);
}
#define EXPECT(code, call) expect(__LINE__, (call), (code))

static mu_handle replica;
static mu_sink kept_sink;
static mu_source kept_source;
static int applied;

static int apply(void *user, const mu_command *command, mu_sink reply) {
  (void)user;
  (void)command;
  uint8_t leader;
  mu_ticket ticket;
  kept_sink = reply;
  applied++;
  EXPECT(MU_MISUSE, mu_propose(replica, 0, 0, (const uint8_t *)"x", 1, -1, NULL));
  EXPECT(MU_MISUSE, mu_submit(replica, 0, 0, (const uint8_t *)"x", 1, &ticket));
  EXPECT(MU_MISUSE, mu_barrier(replica, -1));
  EXPECT(MU_MISUSE, mu_step(replica, 0, -1));
  EXPECT(MU_MISUSE, mu_stop(replica));
  EXPECT(MU_MISUSE, mu_close(replica));
  EXPECT(MU_MISUSE, mu_read(kept_source, &leader, 1, &(size_t){0}));
  EXPECT(MU_INVALID_ARGUMENT, mu_write(reply, NULL, 5));
  EXPECT(MU_OK, mu_write(reply, NULL, 0));
  // Asking is allowed; while another thread is in mu_close the handle is closed already.
  mu_result asked = mu_get_leader(replica, &leader);
  EXPECT(asked == MU_CLOSED ? MU_CLOSED : MU_OK, asked);
  EXPECT(MU_OK, mu_write(reply, (const uint8_t *)"done", 4));
  return 0;
}

static int save(void *user, mu_sink out) {
  (void)user;
  return mu_write(out, (const uint8_t *)"s", 1);
}

static int load(void *user, mu_source in) {
  (void)user;
  kept_source = in;
  return 0;
}

// Calls without a pause while the handle is closed under it.
static void *caller(void *unused) {
  (void)unused;
  for (;;) {
    mu_result code = mu_propose(replica, 0, 0, (const uint8_t *)"y", 1, 1000, NULL);
    if (code == MU_CLOSED) return NULL;
    int fine = code == MU_OK || code == MU_UNKNOWN || code == MU_BUSY || code == MU_NOT_LEADER || code == MU_STOPPED ||
               code == MU_MISUSE;
    if (!fine) exit(4);
  }
}

static mu_result open_one(const char *config, const char *folder, uint32_t mode, int form) {
  mu_callbacks callbacks = {.size = sizeof callbacks, .apply = apply, .save = save, .load = load};
  mu_options options;
  EXPECT(MU_OK, mu_options_init(&options));
  options.mode = mode;
  options.form = (uint8_t)form;
  return mu_open_text(config, folder, &options, &callbacks, &replica);
}

static void one_life(const char *config, const char *folder, uint32_t mode) {
  EXPECT(MU_OK, open_one(config, folder, mode, 1));
  char small[4];
  size_t len = 0;
  uint8_t bytes[2] = {9, 9};
  mu_reply reply = {.data = bytes, .capacity = sizeof bytes};
  mu_result code;
  while ((code = mu_propose(replica, 1, 1, (const uint8_t *)"x", 1, 5000000, &reply)) == MU_NOT_LEADER) {
    if (mode == MU_MODE_STEP) EXPECT(MU_OK, mu_step(replica, 1000, -1));
  }
  EXPECT(MU_TRUNCATED, code);
  if (reply.len != 4 || memcmp(bytes, "do", 2) != 0 || applied == 0) exit(5);
  EXPECT(MU_MISUSE, mu_write(kept_sink, (const uint8_t *)"late", 4));
  EXPECT(MU_TRUNCATED, mu_get_metrics(replica, small, sizeof small, &len));
  EXPECT(MU_INVALID_ARGUMENT, mu_propose(replica, 0, 0, NULL, 1, -1, NULL));
  EXPECT(MU_INVALID_ARGUMENT, mu_propose(replica, 0, 0, (const uint8_t *)"x", SIZE_MAX, -1, NULL));
  EXPECT(MU_INVALID_ARGUMENT, mu_submit(replica, 0, 0, (const uint8_t *)"x", 1, NULL));
  EXPECT(MU_INVALID_ARGUMENT, mu_get_status(replica, NULL));
  EXPECT(MU_INVALID_ARGUMENT, mu_poll(replica, 777, 0, NULL));
#ifdef OFFENCE
  uint8_t *block = calloc(1, 16);
  mu_propose(replica, 0, 0, block, 64, -1, NULL);
  free(block);
#endif
  mu_ticket given_up;
  EXPECT(MU_OK, mu_submit(replica, 0, 0, (const uint8_t *)"x", 1, &given_up));
  pthread_t thread;
  if (pthread_create(&thread, NULL, caller, NULL) != 0) exit(6);
  for (int n = 0; n < 100; n++) mu_barrier(replica, 100);
  mu_result closed = mu_close(replica);
  EXPECT(MU_OK, closed);
  pthread_join(thread, NULL);
  EXPECT(MU_CLOSED, mu_close(replica));
  EXPECT(MU_CLOSED, mu_stop(replica));
  EXPECT(MU_CLOSED, mu_wake(replica));
  EXPECT(MU_CLOSED, mu_poll(replica, given_up, 0, NULL));
  EXPECT(MU_CLOSED, mu_propose(replica, 0, 0, (const uint8_t *)"x", 1, -1, NULL));
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  static char config[4096];
  FILE *file = fopen(argv[1], "r");
  if (file == NULL) return 2;
  if (fread(config, 1, sizeof config - 1, file) == 0) return 2;
  fclose(file);
  mu_callbacks none = {.size = sizeof none};
  mu_options options;
  mu_handle handle;
  EXPECT(MU_OK, mu_options_init(&options));
  EXPECT(MU_INVALID_ARGUMENT, mu_open_text(config, argv[2], &options, &none, &handle));
  EXPECT(MU_INVALID_ARGUMENT, mu_open_text(NULL, NULL, NULL, NULL, NULL));
  EXPECT(MU_CONFIG, open_one("cluster = 7", argv[2], MU_MODE_THREADED, 0));
  EXPECT(MU_INVALID_ARGUMENT, mu_close(0));
  EXPECT(MU_INVALID_ARGUMENT, mu_write(1, NULL, 1));
  EXPECT(MU_MISUSE, mu_write(1, (const uint8_t *)"x", 1));
  if (strlen(mu_last_error()) == 0) return 7;
  one_life(config, argv[2], MU_MODE_THREADED);
  one_life(config, argv[2], MU_MODE_STEP);
  printf("%d checks\n", checks);
  return 0;
}
