// Problems of what is visible: contrast of texts and of controls' borders, size of targets (WCAG 2.2, 1.4.3, 1.4.11, 2.5.8).
() => {
  const channels = (text) => {
    const numbers = text.match(/[\d.]+/g).map(Number);
    return { rgb: numbers.slice(0, 3), alpha: numbers.length > 3 ? numbers[3] : 1 };
  };
  const over = (top, bottom) => top.rgb.map((value, i) => top.alpha * value + (1 - top.alpha) * bottom[i]);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) =>
      value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4,
    );
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(channels(getComputedStyle(one).backgroundColor));
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    return layers.reverse().reduce((below, layer) => over(layer, below), dark ? [18, 18, 18] : [255, 255, 255]);
  };
  const problems = [];
  const name = (element) =>
    `${element.localName}#${element.id}.${element.className} "${element.textContent.trim().slice(0, 30)}"`;
  for (const element of document.querySelectorAll("body *")) {
    if (!element.checkVisibility() || element.closest("svg, option, noscript, [disabled], label:has([disabled])"))
      continue;
    if (element.matches(".skip:not(:focus)")) continue;
    const style = getComputedStyle(element);
    if ([...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) {
      const large =
        parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
      const background = behind(element);
      const ratio = contrast(over(channels(style.color), background), background);
      if (ratio < (large ? 3 : 4.5)) problems.push(`${name(element)}: text of contrast ${ratio.toFixed(2)}`);
    }
    if (element.matches("input:not([type=file], [type=range]), select, textarea")) {
      const around = behind(element.parentElement);
      const ratio = Math.max(
        contrast(over(channels(style.borderTopColor), around), around),
        contrast(behind(element), around),
      );
      if (ratio < 3) problems.push(`${name(element)}: border of contrast ${ratio.toFixed(2)}`);
    }
    if (element.matches("button, input, select, summary")) {
      const box = element.getBoundingClientRect();
      const label = element.closest("label")?.getBoundingClientRect() ?? box;
      if (Math.max(box.height, label.height) < 24 || Math.max(box.width, label.width) < 24)
        problems.push(`${name(element)}: too small`);
    }
  }
  return problems;
};
