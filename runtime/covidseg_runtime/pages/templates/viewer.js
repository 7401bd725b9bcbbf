// The viewer of the page of a scan: NiiVue with the few controls that a reader needs.
// What it shows comes from the element #viewer-settings. Until it has drawn, the picture stands in its place.
(function () {
  "use strict";
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const SLICE_AXIS = { all: 2, axial: 2, coronal: 1, sagittal: 0 };
  const SLICE_NAME = { all: "Axial slice", axial: "Axial slice", coronal: "Coronal slice", sagittal: "Sagittal slice" };
  const LABEL_NAMES = ["", "left lung", "right lung", "infection"];
  const SLICE_TYPE = { axial: 0, coronal: 1, sagittal: 2, render: 4 };
  const INFECTION = 3;

  function bytesOf(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer;
  }

  function fail(reason) {
    root.dataset.viewer = "failed";
    byId("viewer").hidden = true;
    byId("viewer-status").textContent = "The slices are shown as a picture: " + reason;
  }

  class Viewer {
    constructor(settings) {
      this.settings = settings;
      this.planes = "all";
      this.showsInfection = true;
      this.showsLungs = false;
      this.canvas = byId("canvas");
      this.niivue = new niivue.Niivue({
        logLevel: "error",
        backColor: [0, 0, 0, 1],
        crosshairColor: [1, 0.85, 0.2, 0.55],
        crosshairGap: 12,
        fontColor: [1, 1, 1, 1],
        isRadiologicalConvention: true,
        sagittalNoseLeft: true,
        isOrientationTextVisible: true,
        dragAndDropEnabled: false,
        dragMode: niivue.DRAG_MODE.windowing,
        isColorbar: false,
        showLegend: false,
        loadingText: "",
        clipPlaneHotKey: "",
        cycleClipPlaneHotKey: "",
        viewModeHotKey: "",
        onLocationChange: (place) => this.tellPlace(place),
      });
    }

    async start() {
      byId("viewer").hidden = false;
      await this.niivue.attachToCanvas(this.canvas);
      for (const name of ["scan", "labels"]) {
        const url = bytesOf(this.settings[name]);
        this.niivue.addVolume(await niivue.NVImage.loadFromUrl({ url, name: name + ".nii.gz" }));
      }
      [this.scan, this.labels] = this.niivue.volumes;
      this.setWindow("lung");
      this.colourLabels();
      this.setOpacity();
      this.setPlanes("all");
      this.jump(this.settings.start_mm);
    }

    colourLabels() {
      const shown = [false, this.showsLungs, this.showsLungs, this.showsInfection];
      const colour = (channel) => [0, 1, 2, 3].map((label) => (label ? this.settings.colours[label][channel] : 0));
      this.labels.setColormapLabel({
        R: colour(0),
        G: colour(1),
        B: colour(2),
        A: shown.map((is) => (is ? 255 : 0)),
        labels: LABEL_NAMES,
      });
      this.niivue.updateGLVolume();
      press("#show-infection", this.showsInfection);
      press("#show-lungs", this.showsLungs);
    }

    setOpacity() {
      this.niivue.setOpacity(1, byId("opacity").value / 100);
    }

    setWindow(name) {
      [this.scan.cal_min, this.scan.cal_max] = this.settings.windows[name];
      this.niivue.updateGLVolume();
      for (const button of document.querySelectorAll("[data-window]")) press(button, button.dataset.window === name);
    }

    setPlanes(name) {
      this.planes = name;
      if (name === "all") this.niivue.setCustomLayout(layoutFor(this.canvas));
      else {
        this.niivue.clearCustomLayout();
        this.niivue.setSliceType(SLICE_TYPE[name]);
      }
      for (const button of document.querySelectorAll("[data-planes]")) press(button, button.dataset.planes === name);
      const axis = SLICE_AXIS[name];
      byId("slice").disabled = axis === undefined;
      byId("slice-name").textContent = SLICE_NAME[name] || "Slice";
      if (axis !== undefined) byId("slice").max = this.scan.dimsRAS[axis + 1];
      this.niivue.createOnLocationChange();
    }

    jump(mm) {
      this.niivue.scene.crosshairPos = this.niivue.mm2frac(mm);
      this.niivue.drawScene();
      this.niivue.createOnLocationChange();
    }

    setSlice(number) {
      const voxel = Array.from(this.niivue.frac2vox(this.niivue.scene.crosshairPos));
      voxel[SLICE_AXIS[this.planes]] = Math.min(Math.max(number, 1), Number(byId("slice").max)) - 1;
      this.niivue.scene.crosshairPos = this.niivue.vox2frac(voxel);
      this.niivue.drawScene();
      this.niivue.createOnLocationChange();
    }

    tellPlace(place) {
      if (!this.labels) return;
      const axis = SLICE_AXIS[this.planes];
      const slider = byId("slice");
      if (axis !== undefined) slider.value = Math.round(place.vox[axis]) + 1;
      const [hu, label] = place.values.map((one) => one.value);
      const [low, high] = this.settings.range_hu;
      const density = hu <= low ? low + " HU or less" : hu >= high ? high + " HU or more" : Math.round(hu) + " HU";
      const parts = [
        axis === undefined ? "" : slider.value + " of " + slider.max + " from the " + ["right", "back", "feet"][axis],
        patientPlace(place.mm),
        density.replace("-", "\u2212"),
        LABEL_NAMES[Math.round(label)] || "",
      ];
      byId("place").textContent = parts.filter(Boolean).join(" · ");
    }
  }

  // All planes: a large axial slice, and beside or below it the others and the rendering.
  function layoutFor(canvas) {
    const { AXIAL, CORONAL, SAGITTAL, RENDER } = niivue.SLICE_TYPE;
    const tile = (sliceType, left, top, width, height) => ({ sliceType, position: [left, top, width, height] });
    if (canvas.clientWidth > 1.2 * canvas.clientHeight)
      return [tile(AXIAL, 0, 0, 0.6, 1), tile(CORONAL, 0.6, 0, 0.4, 0.34), tile(SAGITTAL, 0.6, 0.34, 0.4, 0.33), tile(RENDER, 0.6, 0.67, 0.4, 0.33)];
    return [tile(AXIAL, 0, 0, 1, 0.55), tile(CORONAL, 0, 0.55, 0.5, 0.45), tile(SAGITTAL, 0.5, 0.55, 0.5, 0.45)];
  }

  function patientPlace(mm) {
    return ["RL", "AP", "SI"].map((pair, axis) => pair[mm[axis] >= 0 ? 0 : 1] + " " + Math.abs(mm[axis]).toFixed(0)).join(" ");
  }

  function press(button, isPressed) {
    (typeof button === "string" ? document.querySelector(button) : button).setAttribute("aria-pressed", String(isPressed));
  }

  function connect(viewer) {
    const on = (selector, event, action) => {
      for (const element of document.querySelectorAll(selector)) element.addEventListener(event, () => action(element));
    };
    const toggle = (what) => {
      viewer[what] = !viewer[what];
      viewer.colourLabels();
    };
    on("[data-planes]", "click", (button) => viewer.setPlanes(button.dataset.planes));
    on("[data-window]", "click", (button) => viewer.setWindow(button.dataset.window));
    on("#show-infection", "click", () => toggle("showsInfection"));
    on("#show-lungs", "click", () => toggle("showsLungs"));
    on("#opacity", "input", () => viewer.setOpacity());
    on("#slice", "input", (slider) => viewer.setSlice(Number(slider.value)));
    on("[data-mm]", "click", (button) => {
      viewer.jump(button.dataset.mm.split(",").map(Number));
      byId("viewer").scrollIntoView();
      viewer.canvas.focus({ preventScroll: true });
    });
    const slices = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 };
    const keys = {
      l: () => viewer.setWindow("lung"),
      s: () => viewer.setWindow("soft"),
      i: () => toggle("showsInfection"),
    };
    // Before NiiVue, whose own keys are many and easily hit.
    for (const event of ["keydown", "keyup"])
      window.addEventListener(event, (pressed) => {
        if (pressed.target !== viewer.canvas) return;
        pressed.stopImmediatePropagation();
        if (event === "keyup" || pressed.ctrlKey || pressed.metaKey || pressed.altKey) return;
        const step = slices[pressed.key];
        if (step && viewer.planes !== "render") viewer.setSlice(Number(byId("slice").value) + step);
        else if (keys[pressed.key]) keys[pressed.key]();
        else return;
        pressed.preventDefault();
      }, true);
    window.addEventListener("resize", () => viewer.setPlanes(viewer.planes));
  }

  // The share of pixels that are not background, read in the turn in which they were drawn.
  function drawnShare(viewer) {
    viewer.niivue.drawScene();
    const gl = viewer.niivue.gl;
    const pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
    gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    let drawn = 0;
    for (let at = 0; at < pixels.length; at += 4) if (pixels[at] + pixels[at + 1] + pixels[at + 2] > 0) drawn += 1;
    return (4 * drawn) / pixels.length;
  }

  async function main() {
    root.dataset.viewer = "starting";
    if (!document.createElement("canvas").getContext("webgl2")) {
      fail("this browser has no WebGL 2 here.");
      return;
    }
    byId("viewer-status").textContent = "The viewer is starting …";
    const viewer = new Viewer(JSON.parse(byId("viewer-settings").textContent));
    try {
      await viewer.start();
    } catch (error) {
      fail("the viewer could not start (" + error.message + ").");
      return;
    }
    const share = drawnShare(viewer);
    if (share === 0) {
      fail("the viewer drew nothing.");
      return;
    }
    connect(viewer);
    for (const element of document.querySelectorAll(".jump")) element.hidden = false;
    byId("viewer-status").textContent = "";
    root.dataset.drawn = share.toFixed(3);
    root.dataset.seconds = (performance.now() / 1000).toFixed(1);
    root.dataset.viewer = "drawn";
  }

  main();
})();
