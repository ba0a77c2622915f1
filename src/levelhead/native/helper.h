// A second thread for half of the work.
#pragma once
#include <atomic>
#include <system_error>
#include <thread>

class Helper {
   public:
    explicit Helper(bool wanted) {
        if (!wanted) return;
        try {
            thread = std::thread([this] { serve(); });
        } catch (const std::system_error &) {  // then one thread does it all
        }
    }
    Helper(const Helper &) = delete;
    ~Helper() {
        if (!thread.joinable()) return;
        hand_over({});
        thread.join();
    }

    // Calls both, at the same time where there is a thread that comes to it: it may have no processor just then.
    template <class First, class Second>
    void both(First first, Second second) {
        if (!thread.joinable()) {
            first();
            second();
            return;
        }
        const unsigned turn = hand_over({[](void *call) { (*static_cast<Second *>(call))(); }, &second});
        first();
        if (begin(turn)) {
            second();
            end(turn);
        } else {
            wait([&] { return progress.load(std::memory_order_acquire) == 2 * turn; });
        }
    }

   private:
    struct Job {
        void (*run)(void *);
        void *call;
    };

    unsigned hand_over(Job next) {
        job = next;
        return given.fetch_add(1, std::memory_order_release) + 1;
    }

    // Whether nobody else has begun this turn's job, which is then the caller's; there is no other before its end.
    bool begin(unsigned turn) {
        unsigned before = 2 * (turn - 1);
        return progress.load(std::memory_order_acquire) == before &&
               progress.compare_exchange_strong(before, before + 1, std::memory_order_acq_rel);
    }

    void end(unsigned turn) { progress.store(2 * turn, std::memory_order_release); }

    void serve() {
        for (unsigned turn = 0;;) {
            wait([&] { return given.load(std::memory_order_acquire) != turn; });
            turn = given.load(std::memory_order_acquire);
            if (!begin(turn)) continue;
            if (!job.run) return;
            job.run(job.call);
            end(turn);
        }
    }

    // Jobs are of microseconds, which sleeping would double; whoever waits for longer lets others run.
    template <class Condition>
    static void wait(Condition holds) {
        for (int spins = 0; !holds(); spins++)
            if (spins > 10000) std::this_thread::yield();
    }

    std::thread thread;
    Job job{};
    alignas(64) std::atomic<unsigned> given{0};
    alignas(64) std::atomic<unsigned> progress{0};  // twice the turns that are done, and one where a job has begun
};
