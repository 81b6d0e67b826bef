// The study in the browser: order and sides from the annotator's seed, answers kept in localStorage, saved as a JSON file.
// Prompts and names reach the page as text only (textContent), and nothing is ever sent: the page's policy forbids it.
"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const trials = new Map(study.trials.map((trial) => [trial.id, trial]));
  const place = "videogen-study:" + study.study;
  const $ = (id) => document.getElementById(id);
  const videos = [$("left"), $("right")];
  const wide = { left: "Left", same: "No difference", right: "Right" };
  const choices = study.ties ? ["left", "same", "right"] : ["left", "right"];
  let state = null; // { annotator, seed, started, finished, position, records: { trial id: { answers, seconds, at } } }
  let order = []; // of this annotator: [{ id, swapped }]
  let active = 0; // the question that the arrow keys answer
  let since = 0; // when this trial came to the screen
  let playing = true;

  // Chance

  function generator(seed) { // mulberry32: uniform numbers in [0, 1) from 32 bits
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  function shuffled(items, random) { // Fisher and Yates
    const list = [...items];
    for (let i = list.length - 1; i > 0; i--) {
      const j = Math.floor(random() * (i + 1));
      [list[i], list[j]] = [list[j], list[i]];
    }
    return list;
  }

  function orderOf(seed) { // half of the trials swapped (of an odd number: one more or less, by chance)
    const random = generator(seed);
    const ids = shuffled(study.trials.map((trial) => trial.id), random);
    const spare = random() < 0.5 ? 1 : 0;
    const swaps = shuffled(ids.map((_, i) => (i + spare) % 2 === 1), random);
    return ids.map((id, i) => ({ id, swapped: swaps[i] }));
  }

  // Keeping

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch {
      say("This browser does not keep your progress: leave the page open until you have saved your answers.");
    }
  }

  function kept() {
    try {
      const found = JSON.parse(localStorage.getItem(place));
      const whole = found && typeof found.annotator === "string" && Number.isInteger(found.seed) && found.records
        && Number.isInteger(found.position) && found.position >= 0 && found.position <= trials.size;
      return whole ? found : null;
    } catch {
      return null;
    }
  }

  const record = (id) => (state.records[id] ??= { answers: {}, seconds: 0, at: null });
  const complete = (id) => study.questions.every((question) => state.records[id]?.answers[question.id]);
  const firstOpen = (id) => {
    const index = study.questions.findIndex((question) => !record(id).answers[question.id]);
    return index < 0 ? study.questions.length : index;
  };
  const current = () => order[state.position];

  // Screens

  function show(name) {
    for (const id of ["welcome", "trial", "end"]) $(id).hidden = id !== name;
    scrollTo(0, 0);
  }

  function say(text) {
    $("status").textContent = text;
  }

  function welcome() {
    const count = trials.size;
    $("amount").textContent = `There ${count === 1 ? "is 1 pair" : `are ${count} pairs`} of videos.`;
    $("annotator").value = new URLSearchParams(location.search).get("annotator")?.slice(0, 40) ?? "";
    show("welcome");
  }

  function begin(annotator) {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    state = { annotator, seed, started: new Date().toISOString(), finished: null, position: 0, records: {} };
    order = orderOf(seed);
    keep();
    open();
  }

  function open() { // the screen of state.position: a trial, or the end
    if (state.position === order.length) return finish();
    const { id, swapped } = current();
    const trial = trials.get(id);
    const sides = swapped ? [trial.videos[1], trial.videos[0]] : trial.videos;
    $("place").textContent = `Pair ${state.position + 1} of ${order.length}`;
    $("progress").max = order.length;
    $("progress").value = order.filter((entry) => complete(entry.id)).length;
    $("prompt").textContent = trial.prompt;
    $("back").disabled = state.position === 0;
    $("broken").hidden = true;
    say("");
    videos.forEach((video, side) => { video.src = `videos/${sides[side]}`; });
    playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    play();
    for (const input of $("questions").querySelectorAll("input")) input.checked = record(id).answers[input.name] === input.value;
    activate(firstOpen(id));
    show("trial");
    since = performance.now();
    $("place").focus({ preventScroll: true });
    preload(order[state.position + 1]);
  }

  function preload(next) {
    preload.kept = (next ? trials.get(next.id).videos : []).map((source) => {
      const video = document.createElement("video");
      video.preload = "auto";
      video.muted = true;
      video.src = `videos/${source}`;
      return video;
    });
  }

  function finish() {
    state.finished = new Date().toISOString();
    keep();
    playing = false;
    play();
    const open = order.filter((entry) => !complete(entry.id)).length;
    $("summary").textContent = open === 0 ? `You have compared all ${order.length} pairs.`
      : `You have compared ${order.length - open} of ${order.length} pairs; ${open} ${open === 1 ? "was" : "were"} skipped.`;
    $("saved").textContent = "";
    show("end");
    $("thanks").focus();
  }

  // Videos: both start together, and again at each turn where they last equally long

  function play() {
    $("play").textContent = playing ? "Pause" : "Play";
    if (!playing) return videos.forEach((video) => video.pause());
    if (videos.some((video) => video.readyState < HTMLMediaElement.HAVE_FUTURE_DATA)) return undefined;
    return videos.forEach((video) => { video.play().catch(() => {}); });
  }

  for (const video of videos) {
    video.addEventListener("canplay", play);
    video.addEventListener("loadedmetadata", () => {
      const ratios = videos.filter((each) => each.videoWidth).map((each) => each.videoWidth / each.videoHeight);
      $("pair").style.setProperty("--ratio", Math.max(...ratios));
    });
    video.addEventListener("error", () => { $("broken").hidden = false; });
  }
  videos[0].addEventListener("seeked", () => {
    const alike = Math.abs(videos[0].duration - videos[1].duration) < 0.05;
    const apart = Math.abs(videos[0].currentTime - videos[1].currentTime);
    if (alike && Math.min(apart, videos[0].duration - apart) > 0.1) videos.forEach((video) => { video.currentTime = 0; });
  });

  // Questions

  function build() {
    study.questions.forEach((question, index) => {
      const group = document.createElement("fieldset");
      const legend = document.createElement("legend");
      legend.textContent = question.text;
      const row = document.createElement("div");
      row.className = "choices";
      for (const choice of choices) {
        const label = document.createElement("label");
        const input = document.createElement("input");
        Object.assign(input, { type: "radio", name: question.id, value: choice });
        input.addEventListener("change", () => answer(index, choice));
        input.addEventListener("focus", () => activate(index));
        input.addEventListener("click", (event) => { // by a pointer: the arrow keys go on with the next question
          if (event.detail > 0) {
            input.blur();
            activate(firstOpen(current().id));
          }
        });
        label.append(input, wide[choice]);
        row.append(label);
      }
      group.append(legend, row);
      $("questions").append(group);
    });
    const hints = [["←", "left"], ...(study.ties ? [["↓", "no difference"]] : []), ["→", "right"], ["↑", "question before"],
      ["Enter", "next pair"], ["Space", "pause"]];
    for (const [key, meaning] of hints) {
      const hint = document.createElement("span");
      const kbd = document.createElement("kbd");
      kbd.textContent = key;
      hint.append(kbd, " " + meaning);
      $("keys").append(hint, " ");
    }
  }

  function activate(index) {
    active = index;
    [...$("questions").children].forEach((group, i) => group.classList.toggle("active", i === index));
    $("next").classList.toggle("waiting", !complete(current().id));
  }

  function answer(index, choice) {
    record(current().id).answers[study.questions[index].id] = choice;
    $("next").classList.toggle("waiting", !complete(current().id));
    say("");
    keep();
  }

  function leave(position) {
    const entry = record(current().id);
    entry.seconds = Math.round((entry.seconds + (performance.now() - since) / 1000) * 100) / 100;
    entry.at = new Date().toISOString();
    state.position = position;
    keep();
    open();
  }

  function next() {
    const missing = firstOpen(current().id);
    if (missing === study.questions.length) return leave(state.position + 1);
    activate(missing);
    return say(`Please answer: ${study.questions[missing].text}`);
  }

  document.addEventListener("keydown", (event) => {
    if ($("trial").hidden || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const onControl = event.target.matches("input, button");
    const choice = { ArrowLeft: "left", ArrowDown: "same", ArrowRight: "right" }[event.key];
    if (event.target.matches("input") && event.key.startsWith("Arrow")) return; // a radio group's own keys
    if (choices.includes(choice) && active < study.questions.length) {
      $("questions").querySelector(`input[name="${study.questions[active].id}"][value="${choice}"]`).checked = true;
      answer(active, choice);
      activate(active + 1);
    } else if (event.key === "ArrowUp") {
      activate(Math.max(active - 1, 0));
    } else if (event.key === "Enter" && !onControl) {
      next();
    } else if (event.key === " " && !onControl) {
      $("play").click();
    } else {
      return;
    }
    event.preventDefault();
  });

  // Saving

  function answers() {
    const done = order.map(({ id, swapped }) => {
      const [left, right] = swapped ? [...trials.get(id).videos].reverse() : trials.get(id).videos;
      return { trial: id, left, right, ...record(id) };
    });
    return {
      format: study.format, study: study.study, annotator: state.annotator, seed: state.seed,
      started: state.started, finished: state.finished, trials: done,
    };
  }

  function save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(answers(), null, 1)], { type: "application/json" }));
    link.download = `answers-${state.annotator.replace(/[^A-Za-z0-9]+/g, "-")}-${state.seed.toString(16).padStart(8, "0")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    $("saved").textContent = `Your browser saves the file as ${link.download} in its folder for downloads.`;
  }

  $("begin").addEventListener("submit", (event) => {
    event.preventDefault();
    const annotator = $("annotator").value.trim();
    if (annotator) begin(annotator);
  });
  $("answers").addEventListener("submit", (event) => {
    event.preventDefault();
    next();
  });
  $("back").addEventListener("click", () => leave(state.position - 1));
  $("skip").addEventListener("click", () => leave(state.position + 1));
  $("play").addEventListener("click", () => {
    playing = !playing;
    play();
  });
  $("save").addEventListener("click", save);
  $("review").addEventListener("click", () => {
    state.position = order.length - 1;
    keep();
    open();
  });
  $("anew").addEventListener("click", () => {
    if (!confirm("Have you saved your answers? They are removed from this browser now.")) return;
    try {
      localStorage.removeItem(place);
    } catch { /* nothing was kept */ }
    location.reload();
  });

  build();
  state = kept();
  if (state) {
    order = orderOf(state.seed);
    open();
  } else {
    welcome();
  }
})();
