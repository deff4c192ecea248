// Replicated counters in C, in threaded mode: one replica of a group, told what to do by lines on standard input.
//
//   counters CONFIG ID [form]
//
//   add CLIENT SEQUENCE KEY NUMBER   adds to counter KEY (0 to 15); prints the result code and the new value
//   get KEY                          prints the code and the value; only the leader is sure of it
//   state                            prints whether it has a vote, its last applied entry, a digest of all counters
//   leader                           prints which replica leads, 255 if that is not known
//
// Every line has one line as its answer. A client sends to the leader; after any code that is not "decided" it asks who
// leads and sends the same CLIENT and SEQUENCE again, so that what was applied before is not applied twice.
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mu.h"

enum { KEYS = 16 };

// The callbacks come on the replica's thread, the lines on this program's: both look at the state.
struct counters {
  pthread_mutex_t lock;
  uint64_t value[KEYS];
};

struct add {
  uint64_t key;
  uint64_t number;
};

static int apply(void *user, const mu_command *command, mu_sink reply) {
  struct counters *counters = user;
  struct add add;
  // The bytes are whatever was proposed: a command that makes no sense has to be ignored by every replica alike.
  if (command->len != sizeof add) return 0;
  memcpy(&add, command->data, sizeof add);
  if (add.key >= KEYS) return 0;
  pthread_mutex_lock(&counters->lock);
  uint64_t value = counters->value[add.key] += add.number;
  pthread_mutex_unlock(&counters->lock);
  return mu_write(reply, (const uint8_t *)&value, sizeof value) == MU_OK ? 0 : 1;
}

static int save(void *user, mu_sink out) {
  struct counters *counters = user;
  pthread_mutex_lock(&counters->lock);
  mu_result code = mu_write(out, (const uint8_t *)counters->value, sizeof counters->value);
  pthread_mutex_unlock(&counters->lock);
  return code == MU_OK ? 0 : 1;
}

static int load(void *user, mu_source in) {
  struct counters *counters = user;
  uint64_t value[KEYS];
  size_t count = 0;
  if (mu_read(in, (uint8_t *)value, sizeof value, &count) != MU_OK || count != sizeof value) return 1;
  pthread_mutex_lock(&counters->lock);
  memcpy(counters->value, value, sizeof value);
  pthread_mutex_unlock(&counters->lock);
  return 0;
}

static uint64_t digest(void *user) {
  struct counters *counters = user;
  uint64_t sum = UINT64_C(0xcbf29ce484222325);
  pthread_mutex_lock(&counters->lock);
  for (int key = 0; key < KEYS; key++) sum = (sum ^ counters->value[key]) * UINT64_C(0x100000001b3);
  pthread_mutex_unlock(&counters->lock);
  return sum;
}

static void role(void *user, const mu_role *role) {
  (void)user;
  fprintf(stderr, "role %" PRIu32 " in epoch %" PRIu64 ", leader %u\n", role->role, role->epoch, role->leader);
}

static void fatal(void *user, mu_result code, const char *text) {
  (void)user;
  fprintf(stderr, "%s: %s\n", mu_strerror(code), text);
  exit(3);
}

static void answer(mu_handle replica, struct counters *counters, const char *line) {
  uint64_t client, sequence, key, number;
  if (sscanf(line, "add %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64, &client, &sequence, &key, &number) == 4) {
    struct add add = {key, number};
    uint64_t value = 0;
    mu_reply reply = {.data = (uint8_t *)&value, .capacity = sizeof value};
    mu_result code = mu_propose(replica, client, sequence, (const uint8_t *)&add, sizeof add, 2000000, &reply);
    printf("%d %" PRIu64 "\n", code, value);
  } else if (sscanf(line, "get %" SCNu64, &key) == 1 && key < KEYS) {
    mu_result code = mu_barrier(replica, 2000000);
    pthread_mutex_lock(&counters->lock);
    uint64_t value = counters->value[key];
    pthread_mutex_unlock(&counters->lock);
    printf("%d %" PRIu64 "\n", code, value);
  } else if (strncmp(line, "state", 5) == 0) {
    mu_status status = {0};
    mu_get_status(replica, &status);
    printf("%u %" PRIu64 " %016" PRIx64 "\n", status.voter, status.applied, digest(counters));
  } else if (strncmp(line, "leader", 6) == 0) {
    uint8_t leader = MU_NO_LEADER;
    mu_get_leader(replica, &leader);
    printf("%u\n", leader);
  } else {
    printf("?\n");
  }
  fflush(stdout);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: counters CONFIG ID [form]\n");
    return 2;
  }
  if (mu_abi_version() != MU_ABI_VERSION) {
    fprintf(stderr, "this program was made for version %d of libmu's interface\n", MU_ABI_VERSION);
    return 2;
  }
  static struct counters counters = {.lock = PTHREAD_MUTEX_INITIALIZER};
  mu_callbacks callbacks = {
      .size = sizeof callbacks,
      .user = &counters,
      .apply = apply,
      .save = save,
      .load = load,
      .digest = digest,
      .role = role,
      .fatal = fatal,
  };
  mu_options options;
  mu_options_init(&options);
  options.id = (uint8_t)atoi(argv[2]);
  options.form = argc > 3 && strcmp(argv[3], "form") == 0;
  mu_handle replica;
  mu_result code = mu_open_file(argv[1], &options, &callbacks, &replica);
  if (code != MU_OK) {
    fprintf(stderr, "%s: %s\n", mu_strerror(code), mu_last_error());
    return 1;
  }
  printf("ready\n");
  fflush(stdout);
  char line[256];
  while (fgets(line, sizeof line, stdin) != NULL) answer(replica, &counters, line);
  mu_close(replica);
  return 0;
}
